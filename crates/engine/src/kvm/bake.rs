//! Making a bake: boot once, warm up, stand still, save; then a rehearsal, to learn what every
//! machine touches first.
//!
//! ```text
//!   boot ─▶ agent, warm-up lines, quiesce ─▶ pause ─▶ save ─▶ memory, state, disk ─┐
//!                                                                                  ▼
//!   working-set ◀─ record ◀─ pause ◀─ identity, a command ◀─ run ◀─ restore ◀─ machine.json
//! ```
//!
//! The rehearsal is the first machine that is made of the bake, so it is also the proof that one
//! can be.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pandastack_types::Size;
use pandastack_vmm::control::{Request, Role};
use tokio::net::UnixStream;

use super::client::{Attached, Over, RECORD, attach};
use super::files::Files;
use super::fork::Copy;
use super::manifest::{Manifest, WORKING_SET};
use super::monitor::{Host, Monitor, Ways, launch};
use super::restore::restore;
use super::snapshot::{blocking, new_file, pagemap, save_machine};
use crate::agent::{AgentClient, Identity};
use crate::disk::{self, DISK};
use crate::error::file_error;
use crate::files::{MEMORY, open, open_rw, set_mode};
use crate::rehearsal::{log_console, rehearse, run_line};
use crate::{Bake, BakeLog, EngineError, GuestImage};

/// From the start of the monitor to the agent's first answer: a second, or several where the host
/// is itself emulated.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// For the first answer of the rehearsal.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// What tenants run first if their template does not say: something that starts a process.
const TRIVIAL: &str = "true";

/// What a bake is made of and where its log lines go.
pub(super) struct Job<'a> {
    pub host: &'a Host,
    /// For people: what it is made on.
    pub processor: String,
    pub image: &'a GuestImage,
    pub size: Size,
    pub log: &'a BakeLog<'a>,
}

/// Bakes into the empty directory `out`.
pub(super) async fn bake(job: &Job<'_>, out: &Path) -> Result<(), EngineError> {
    let begin = Instant::now();
    // The memory of a machine is nobody else's to read.
    set_mode(out, 0o700)?;
    (job.log)("booting the guest");
    disk::make_ext4(&out.join(DISK), job.size.disk_mb).await?;
    let (monitor, ways) = boot(job, out).await?;
    let saved = async {
        warm_up(job, &monitor, ways.agent, begin).await?;
        (job.log)(&format!("frozen after {} ms", begin.elapsed().as_millis()));
        (job.log)("writing the memory");
        save_machine(&monitor, out, (Role::Memory, MEMORY)).await
    };
    match saved.await {
        Ok(()) => monitor.process.end().await,
        Err(error) => return Err(monitor.explain(error).await),
    }
    let manifest = Manifest::new(&job.host.runtime.digest, &job.processor, job.size);
    let manifest = complete(manifest, out).await?;
    if train(job, out).await? {
        complete(manifest, out).await?;
    }
    Ok(())
}

/// Starts a monitor with the image's kernel. Nothing runs yet.
async fn boot(job: &Job<'_>, out: &Path) -> Result<(Monitor, Ways), EngineError> {
    let image = job.image;
    let disk = open_rw(&out.join(DISK))?;
    let [root, kernel, initrd] = [open(&image.root)?, open(&image.kernel)?, open(&image.initrd)?];
    let mut with = Attached::new();
    attach(&mut with, Role::Root, [&root]);
    attach(&mut with, Role::Disk, [&disk]);
    attach(&mut with, Role::Kernel, [&kernel]);
    attach(&mut with, Role::Initrd, [&initrd]);
    let command_line = pandastack_vmm::boot::command_line(true);
    let idle = launch(job.host, &format!("bake-{}", std::process::id()), job.size).await?;
    idle.start(job.host, job.size, Some(command_line), with).await
}

/// Boots the guest, runs what is to be warm, and stops it at rest.
async fn warm_up(
    job: &Job<'_>,
    monitor: &Monitor,
    agent: UnixStream,
    begin: Instant,
) -> Result<(), EngineError> {
    let client = &monitor.client;
    let agent = AgentClient::connect(agent);
    client.run().await?;
    let booted = tokio::select! {
        booted = agent.hello(BOOT_DEADLINE) => booted.map(drop).map_err(EngineError::from),
        over = client.over() => Err(ended(&over)),
    };
    if let Err(error) = booted {
        // One that is over has no console any more.
        log_console(&client.console().await.unwrap_or_default(), job.log);
        return Err(error);
    }
    (job.log)(&format!("booted in {} ms", begin.elapsed().as_millis()));
    tokio::select! {
        rehearsed = rehearse(&agent, job.image, job.log) => rehearsed?,
        over = client.over() => return Err(ended(&over)),
    }
    client.pause().await
}

fn ended(over: &Over) -> EngineError {
    EngineError::Ended(format!("while it was baked: {over:?}"))
}

/// Makes the first machine of the bake in `out` do what tenants' do first, and has it write down
/// which pages that took. Whether it did: without a list machines are slower, and that is all.
async fn train(job: &Job<'_>, out: &Path) -> Result<bool, EngineError> {
    // Not a bake's file, so it must not stay.
    let dir = out.join("rehearsal");
    fs::create_dir(&dir).map_err(|e| file_error("create", &dir, e))?;
    let bake =
        Bake { dir: out.to_owned(), image: job.image.clone(), size: job.size, key: String::new() };
    let name = format!("rehearsal-{}", std::process::id());
    let trained = async {
        let files = Files::open(&bake)?;
        let machine = restore(job.host, &bake, &files, &dir, &name).await?;
        let Copy { monitor, ways, body: _ } = machine;
        match rehearse_first_steps(job, &monitor, ways.agent, out).await {
            Ok(recorded) => {
                monitor.process.end().await;
                Ok(recorded)
            }
            Err(error) => Err(monitor.explain(error).await),
        }
    };
    let trained = trained.await;
    fs::remove_dir_all(&dir).map_err(|e| file_error("remove", &dir, e))?;
    trained
}

async fn rehearse_first_steps(
    job: &Job<'_>,
    monitor: &Monitor,
    agent: UnixStream,
    out: &Path,
) -> Result<bool, EngineError> {
    let begin = Instant::now();
    let agent = AgentClient::connect(agent);
    monitor.client.run().await?;
    agent.hello(ANSWER_DEADLINE).await?;
    agent.resume(&Identity::random("rehearsal")?, ANSWER_DEADLINE).await?;
    agent.ping().await?;
    for line in [TRIVIAL].into_iter().chain(job.image.warm_up.first().map(String::as_str)) {
        run_line(&agent, line, job.log).await?;
    }
    monitor.client.pause().await?;
    let Some(pagemap) = pagemap(monitor) else {
        (job.log)("no working set: this host does not let us see which pages a machine has");
        return Ok(false);
    };
    let list = new_file(&out.join(WORKING_SET))?;
    let mut attached = Attached::new();
    attach(&mut attached, Role::WorkingSet, [&list]);
    attach(&mut attached, Role::Pagemap, [&pagemap]);
    monitor.client.done(Request::Record, attached, RECORD).await?;
    (job.log)(&format!("rehearsed in {} ms", begin.elapsed().as_millis()));
    Ok(true)
}

async fn complete(mut manifest: Manifest, out: &Path) -> Result<Manifest, EngineError> {
    let out = out.to_owned();
    blocking(move || manifest.complete(&out).map(|()| manifest)).await
}
