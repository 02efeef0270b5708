//! What the kvm engine's monitor costs, in stages, and another monitor doing the same work in turns
//! with it: see `tests/examples/bench-kvm`, which measures.
//!
//! ```text
//!  host     cargo ▶ bench-kvm, panda-vmm, panda-keeper ──┐    ┌── image of the template `base`
//!           target/bench-kvm/programs, image ◀───────────┴────┴─ and its kernel, unpacked
//!  level 1  bench-kvm ▶ report ── /out ──▶ host: tables
//! ```
//!
//! It runs in `cargo xtask nested`, whose clock counts instructions, so that the figures repeat.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::{kvm_report, publish};
use crate::nested::{Machine, Share};
use crate::prepare;
use crate::run::{capture, cargo, must, step, workspace};

/// The template whose image is measured with.
const TEMPLATE: &str = "base";
/// What everything is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where machines live in level 1: in memory, so that nobody waits for a disk.
const DIR: &str = "/dev/shm/bench";
/// For a round of each kind, and for all that comes before them. Emulation is slow.
const TIME_PER_ROUND: Duration = Duration::from_secs(120);
const TIME_BEFORE: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Args, Clone)]
pub struct Plan {
    /// Rounds of each kind
    #[arg(short, default_value_t = 30)]
    n: usize,
    /// A Firecracker program, to have it do the same work in the same run
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// A folder with `vmlinuz`, `initrd.cpio` and `root.erofs`, instead of those of a template
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
    /// Measures time instead of instructions, with whatever else the host does in it
    #[arg(long)]
    wall: bool,
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { n: 30, firecracker: None, image: None, wall: false, docs: false }
    }
}

/// Builds, measures and publishes.
pub fn run(plan: &Plan) -> Result<()> {
    let stage = workspace().join("target/bench-kvm");
    let (programs, image) = (stage.join("programs"), stage.join("image"));
    for dir in [&programs, &image] {
        // Another run's: of a program that is not measured now, for one.
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
    }
    stage_image(plan, &image)?;
    stage_programs(&stage, &programs)?;
    if let Some(firecracker) = &plan.firecracker {
        place(firecracker, &programs.join("firecracker"))?;
        unpack_kernel(&image.join("vmlinuz"), &programs.join("vmlinux"))?;
    }
    step("measuring in an emulated machine");
    let report = measure(plan, &stage)?;
    publish("kvm", &kvm_report::text(&report, plan.wall)?, kvm_report::figures(&report)?, plan.docs)
}

fn measure(plan: &Plan, stage: &Path) -> Result<Value> {
    let share = |name: &str| Share { host: stage.join(name), name: name.to_owned() };
    let out = stage.join("out");
    let machine = Machine {
        cpus: 1,
        icount: !plan.wall,
        shares: vec![share("programs"), share("image")],
        timeout: TIME_BEFORE + TIME_PER_ROUND * u32::try_from(plan.n)?,
        out: Some(out.clone()),
        ..Machine::default()
    };
    let command = format!(
        "/share/programs/bench-kvm --programs /share/programs --image /share/image --dir {DIR} \
         -n {} --report /out/kvm.json",
        plan.n
    );
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let outcome = machine.run(&words, &mut std::io::stderr())?;
    ensure!(outcome.status == 0, "the measurement failed");
    let text = fs::read_to_string(out.join("kvm.json"))?;
    serde_json::from_str(&text).context("the report of the measurement")
}

/// What is measured, built as it is shipped, and what measures.
fn stage_programs(stage: &Path, programs: &Path) -> Result<()> {
    step("building the monitor and what measures it");
    let target = stage.join("target");
    let build = |arguments: &[&str]| {
        let mut command = cargo(&["build", "--locked", "--target", TARGET, "--target-dir"]);
        command.arg(&target).args(arguments);
        must(command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static"))
    };
    build(&["--profile", "agent", "-p", "panda-vmm", "-p", "panda-keeper"])?;
    build(&["--release", "-p", "pandastack-tests", "--example", "bench-kvm"])?;
    let made = target.join(TARGET);
    for program in ["agent/panda-vmm", "agent/panda-keeper", "release/examples/bench-kvm"] {
        let name = Path::new(program).file_name().context("a program has a name")?;
        place(&made.join(program), &programs.join(name))?;
    }
    Ok(())
}

/// The files that a guest boots from.
fn stage_image(plan: &Plan, to: &Path) -> Result<()> {
    let [root, initrd] = match &plan.image {
        Some(dir) => [dir.clone(), dir.clone()],
        None => template_image()?,
    };
    place(&root.join("vmlinuz"), &to.join("vmlinuz"))?;
    place(&root.join("root.erofs"), &to.join("root.erofs"))?;
    place(&initrd.join("initrd.cpio"), &to.join("initrd.cpio"))
}

/// The folders of the template's root and of the latest image of it.
fn template_image() -> Result<[PathBuf; 2]> {
    prepare::packages(false)?;
    let program = prepare::program()?;
    prepare::templates(&program)?;
    let templates = pandastack_tests::shared_data().join("templates");
    let mut list = Command::new(&program);
    list.args(["template", "ls", "--json", "--data-dir"]).arg(pandastack_tests::shared_data());
    let (_, text) = capture(&mut list)?;
    let views: Value = serde_json::from_str(&text).context("the list of templates")?;
    let mut views = views.as_array().into_iter().flatten();
    let view = views.find(|view| view["name"] == TEMPLATE).context("there is no such template")?;
    let latest = |kind: &str| {
        let entries = fs::read_dir(templates.join(kind)).into_iter().flatten().flatten();
        let of_it = entries.map(|entry| entry.path()).filter(|dir| {
            let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap_or_default();
            let manifest: Value = serde_json::from_str(&manifest).unwrap_or_default();
            manifest["content"] == view["digest"]
        });
        let made = |dir: &PathBuf| fs::metadata(dir).and_then(|it| it.modified()).ok();
        of_it.max_by_key(made).with_context(|| format!("{TEMPLATE} has nothing in {kind}"))
    };
    Ok([latest("roots")?, latest("images")?])
}

/// Makes `to` another name of the file `from`, or a copy where that cannot be.
fn place(from: &Path, to: &Path) -> Result<()> {
    let placed = fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    placed.with_context(|| format!("cannot have {}", from.display()))
}

/// Unpacks the ELF file in a bzImage: Firecracker boots nothing else.
fn unpack_kernel(image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let payload = payload(&bytes).with_context(|| format!("{} is no bzImage", image.display()))?;
    let packed = to.with_extension("zst");
    fs::write(&packed, payload)?;
    let mut zstd = Command::new("zstd");
    zstd.args(["-dqf", "-o"]).args([to, &packed]).stdin(Stdio::null());
    let unpacked = zstd.status().context("the Debian package zstd is needed")?;
    fs::remove_file(packed)?;
    if !unpacked.success() {
        bail!("the kernel in {} is not packed with zstd", image.display());
    }
    Ok(())
}

/// The packed kernel in a bzImage, without the length that follows it. Offsets are those of
/// Linux's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const SIGNATURE: usize = 0x202;
    const OFFSET: usize = 0x248;
    const LENGTH: usize = 0x24c;
    const SECTOR: usize = 512;
    const TRAILER: usize = 4;
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    if image.get(SIGNATURE..SIGNATURE + 4)? != b"HdrS" {
        return None;
    }
    let start = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * SECTOR + word(OFFSET)?;
    image.get(start..start.checked_add(word(LENGTH)?.checked_sub(TRAILER)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_what_the_header_says() {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"a kernel");
        assert_eq!(payload(&image), Some(&b"a kernel"[..]));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None, "longer than the file");
        assert_eq!(payload(b"MZ"), None);
    }
}
