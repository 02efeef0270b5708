//! A level-1 machine: what it is made of, and running a command in it.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::base::Base;
use super::process::{self, End};
use super::qemu::{self, Disk};
use super::share::{self, Share};
use super::workdir::{Workdir, copy_out};
use crate::prepare;

/// How often to boot a machine that hangs or dies before its command.
const BOOTS: u32 = 3;
/// In what QEMU says of features that an EPYC has and its emulation has not.
const HARMLESS: &str = "TCG doesn't support";

const INIT: &str = include_str!("init.sh");
const MAIN: &str = include_str!("main.sh");

/// What to boot.
pub struct Machine {
    pub cpus: u32,
    pub memory_mb: u32,
    /// The clock counts instructions. Needs a single processor.
    pub icount: bool,
    pub shares: Vec<Share>,
    /// Variables of the command's environment.
    pub env: Vec<(String, String)>,
    /// How long the command may take, from when it is started.
    pub timeout: Duration,
    /// Where to put what the command leaves in `/out`.
    pub out: Option<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory_mb: 6144,
            icount: false,
            shares: Vec::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(600),
            out: None,
        }
    }
}

/// How a command ended.
pub struct Outcome {
    /// Its exit status, as a shell tells it.
    pub status: i32,
    /// From the start of QEMU to the start of the command.
    pub boot: Duration,
    /// From the start of the last QEMU to its end.
    pub elapsed: Duration,
}

impl Machine {
    /// Boots, runs the command, and writes what it prints to `output` as it comes.
    ///
    /// # Errors
    ///
    /// If the machine does not come to the command or not to its end, or the command has to be
    /// stopped; not if the command fails.
    pub fn run(&self, command: &[String], output: &mut (dyn Write + Send)) -> Result<Outcome> {
        ensure!(!self.icount || self.cpus == 1, "counting instructions needs a single processor");
        let names: HashSet<&str> = self.shares.iter().map(|share| &*share.name).collect();
        ensure!(names.len() == self.shares.len(), "two shares have the same name");
        prepare::nested_packages()?;
        let base = Base::ensure()?;
        let shares = self.shares.iter().map(Share::image).collect::<Result<Vec<_>>>()?;
        let dir = Workdir::create()?;
        let job = dir.archive("job", &self.job(command))?;
        let scratch = dir.disk("scratch")?;
        let out = match &self.out {
            Some(to) => Some((dir.disk("out")?, to)),
            None => None,
        };
        let disk = |name: &str, file, writable| Disk { name: name.into(), file, writable };
        let mut disks = vec![disk("root", &base.root, false), disk("job", &job, false)];
        for (number, image) in shares.iter().enumerate() {
            disks.push(disk(&format!("share{number}"), image, false));
        }
        disks.push(disk("scratch", &scratch, true));
        disks.extend(out.iter().map(|(image, _)| disk("out", image, true)));

        let end = self.boot(&base, &disks, &dir, output)?;
        if let Some((image, to)) = &out {
            copy_out(image, to)?;
        }
        match end {
            End::Exit(outcome) => Ok(outcome),
            End::Hung => bail!("level 1 did not boot {BOOTS} times in a row\n{}", last_words(&dir)),
            End::Failed(reason) => bail!("{reason}\n{}", last_words(&dir)),
        }
    }

    /// Boots until the command is started, but not forever.
    fn boot(
        &self,
        base: &Base,
        disks: &[Disk],
        dir: &Workdir,
        output: &mut (dyn Write + Send),
    ) -> Result<End> {
        let log = dir.path().join("qemu.log");
        let mut end = End::Hung;
        for attempt in 1..=BOOTS {
            let command = qemu::command(self, base, disks, dir.path())?;
            end = process::run(command, self.timeout, &log, output)?;
            if !matches!(end, End::Hung) {
                break;
            }
            eprintln!("nested: boot {attempt} of {BOOTS} hung or died");
        }
        Ok(end)
    }

    /// The files that level 1 finds in `/job`.
    fn job(&self, command: &[String]) -> Vec<(&'static str, String)> {
        let words = command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let env = self.env.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
        let kind = |share: &Share| if share.host.is_dir() { "" } else { share::FILE };
        let names = self.shares.iter().map(|share| format!("{} {}\n", share.name, kind(share)));
        vec![
            ("init.sh", INIT.to_owned()),
            ("main.sh", MAIN.to_owned()),
            ("command.sh", format!("{}exec {words}\n", env.collect::<String>())),
            ("shares", names.collect()),
        ]
    }
}

fn last_words(dir: &Workdir) -> String {
    let (console, log) = (dir.tail("console", None), dir.tail("qemu.log", Some(HARMLESS)));
    format!("--- console\n{console}\n--- QEMU\n{log}")
}

/// One word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        for word in ["", "a b", "it's", "$HOME `id` \"\\", "a\nb"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }
}
