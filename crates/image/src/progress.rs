//! What a caller sees of a build while it runs.

use std::fmt;

use pandastack_types::TemplateName;

/// Parts of a build, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Another caller or process builds the same thing.
    Waiting,
    /// A server prepares a size that it was not asked for before.
    Size,
    /// Packages are fetched and installed.
    Packages,
    /// The kernel is fetched.
    Kernel,
    /// The root file system is cleaned and written.
    Filesystem,
    /// The guest boots for the first and only time.
    Boot,
    /// The guest runs what tenants will run first.
    WarmUp,
    /// The machine is frozen and written.
    Snapshot,
}

impl Stage {
    /// The word shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting",
            Stage::Size => "size",
            Stage::Packages => "packages",
            Stage::Kernel => "kernel",
            Stage::Filesystem => "filesystem",
            Stage::Boot => "boot",
            Stage::WarmUp => "warm-up",
            Stage::Snapshot => "snapshot",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One piece of news.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The template being built.
    pub template: TemplateName,
    /// The part that begins or goes on.
    pub stage: Stage,
    /// What happens, for people.
    pub detail: String,
    /// How much of the root's build or of the bake is done, 0 to 1, where that is known.
    pub fraction: Option<f32>,
}

/// Receives the steps of a build. Called from the task that builds, so it must not block.
pub trait Progress: Send + Sync {
    /// Takes one step.
    fn step(&self, step: &Step);
}

/// Drops every step.
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &Step) {}
}

/// What a line of mmdebstrap's or of our hook's output says about the build's progress.
pub(crate) fn of_build_line(line: &str) -> Option<(Stage, &'static str, f32)> {
    // The fractions are where these lines come in a build of the base template.
    const LINES: [(&str, Stage, &str, f32); 10] = [
        ("I: running apt-get update", Stage::Packages, "reading the package lists", 0.02),
        ("I: downloading packages", Stage::Packages, "downloading", 0.10),
        ("I: extracting archives", Stage::Packages, "unpacking the essentials", 0.20),
        ("I: installing essential", Stage::Packages, "installing the essentials", 0.30),
        ("I: installing remaining", Stage::Packages, "installing the rest", 0.40),
        ("pandastack: kernel download", Stage::Kernel, "downloading", 0.70),
        ("pandastack: kernel modules", Stage::Kernel, "choosing modules", 0.76),
        ("pandastack: filesystem clean", Stage::Filesystem, "cleaning", 0.78),
        ("pandastack: filesystem compile", Stage::Filesystem, "compiling Python modules", 0.80),
        ("pandastack: filesystem write", Stage::Filesystem, "writing the image", 0.92),
    ];
    let (_, stage, detail, fraction) = LINES.iter().find(|(head, ..)| line.starts_with(head))?;
    Some((*stage, detail, *fraction))
}

/// The part of a bake that a line of the engine's log belongs to.
pub(crate) fn of_engine_line(line: &str) -> Stage {
    let line = line.to_ascii_lowercase();
    if line.contains("warm") || line.contains("preload") {
        Stage::WarmUp
    } else if ["snapshot", "sav", "freez", "frozen"].iter().any(|word| line.contains(word)) {
        Stage::Snapshot
    } else {
        Stage::Boot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_progress_that_only_grows() {
        let lines = [
            "I: running apt-get update...",
            "I: downloading packages with apt...",
            "I: installing remaining packages inside the chroot...",
            "pandastack: kernel download",
            "pandastack: filesystem write",
        ];
        let steps: Vec<_> = lines.iter().map(|line| of_build_line(line).unwrap()).collect();
        assert!(steps.is_sorted_by(|a, b| a.2 < b.2 && a.0 <= b.0));
        assert_eq!(of_build_line("I: using /some/where as tempdir"), None);
        assert_eq!(of_build_line("Get:1 something"), None);
    }

    #[test]
    fn engine_lines_have_a_stage() {
        assert_eq!(of_engine_line("kernel started"), Stage::Boot);
        assert_eq!(of_engine_line("warm-up: echo ready"), Stage::WarmUp);
        assert_eq!(of_engine_line("Saving memory"), Stage::Snapshot);
    }
}
