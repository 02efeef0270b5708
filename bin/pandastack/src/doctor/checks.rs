//! What the facts mean: pure judgement, so that every verdict can be tested.

use pandastack_types::{Isolation, JailLevel};
use serde::Serialize;

use super::facts::Facts;
use super::fork::Fork;
use crate::engines::{EngineChoice, Kvm};

/// A template and its bakes need this much; less is missing.
const NEEDED_DISK: u64 = 2 << 30;
/// Enough for every template that is shipped.
const COMFORTABLE_DISK: u64 = 8 << 30;
/// Memory for the server and one small sandbox.
const NEEDED_MEMORY_MB: u64 = 768;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Sandboxes run, but something could be better.
    Note,
    /// Essential and not there.
    Missing,
}

impl Verdict {
    /// The word in front of the line.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Missing => "MISSING",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub finding: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, finding: finding.into(), fix: None }
    }

    fn note(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Note, finding: finding.into(), fix: Some(fix.into()) }
    }

    fn missing(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Missing, finding: finding.into(), fix: Some(fix.into()) }
    }
}

/// Judges everything, in the order in which it is read.
pub fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        engine(facts),
        kvm(facts),
        qemu(facts),
        isolation(facts),
        jail(facts),
        fork(facts),
        own_uid(facts),
        cgroup(facts),
        programs(facts),
        templates(facts),
        data_dir(facts),
        memory(facts),
        Check::ok("kernel", facts.kernel.as_str()),
        server(facts),
    ]
}

fn engine(facts: &Facts) -> Check {
    let (name, _) = facts.engine();
    Check::ok(
        "engine",
        match facts.wanted {
            EngineChoice::Auto if name == "kvm" => "kvm: it is proved to work here",
            EngineChoice::Auto => "qemu: kvm does not work here",
            EngineChoice::Kvm => "kvm: asked for",
            EngineChoice::Qemu => "qemu: asked for",
        },
    )
}

fn kvm(facts: &Facts) -> Check {
    let found = &facts.kvm_found;
    match &facts.kvm {
        Kvm::Proved(took) => Check::ok(
            "kvm",
            format!("{found}; proved in {} ms: a guest ran and answered", took.as_millis()),
        ),
        Kvm::Refused(_) if facts.wanted == EngineChoice::Qemu => {
            Check::ok("kvm", format!("{found}; not tried: another engine was asked for"))
        }
        Kvm::Refused(why) => {
            let fix = "run on a machine with hardware virtualisation, its /dev/kvm open to \
                       this user; else sandboxes are emulated";
            if facts.wanted == EngineChoice::Kvm {
                Check::missing("kvm", why.as_str(), fix)
            } else {
                Check::note("kvm", why.as_str(), fix)
            }
        }
    }
}

fn qemu(facts: &Facts) -> Check {
    match (&facts.qemu, facts.engine().0) {
        (Ok(version), _) => Check::ok("qemu", version.as_str()),
        (Err(_), "kvm") => Check::ok("qemu", "not installed, and not needed: the engine is kvm"),
        (Err(why), _) => Check::missing("qemu", why.as_str(), apt_line(&["qemu-system-x86"])),
    }
}

fn isolation(facts: &Facts) -> Check {
    Check::ok(
        "isolation",
        match facts.engine().1 {
            Isolation::Hardware => "hardware: the processor keeps the guest in",
            Isolation::Emulated => {
                "emulated: QEMU runs the guest's instructions, and the jail below is the wall"
            }
        },
    )
}

fn jail(facts: &Facts) -> Check {
    let jail = &facts.jail;
    if let Err(why) = &jail.level.namespaces {
        return Check::missing(
            "jail",
            format!("no namespaces: {why}"),
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0), or run as root",
        );
    }
    match (jail.grade(), facts.reduced_jail_allowed) {
        (JailLevel::Full, _) => Check::ok("jail", jail.describe()),
        (JailLevel::Reduced, true) => Check::note(
            "jail",
            jail.describe(),
            "allowed by --allow-reduced-jail; what is missing is below",
        ),
        (JailLevel::Reduced, false) => Check::missing(
            "jail",
            jail.describe(),
            "mend what is missing, or run with --allow-reduced-jail",
        ),
    }
}

fn fork(facts: &Facts) -> Check {
    match &facts.fork {
        Fork::Proved(took) => Check::ok(
            "fork",
            format!(
                "proved in {:.1} s: a copy of a machine answered, its memory and disk its own",
                took.as_secs_f32()
            ),
        ),
        Fork::Refused(why) => Check::note(
            "fork",
            format!("does not work, so sandboxes are restored, which is slower: {why}"),
            "docs/compatibility.md lists what it was proved on",
        ),
        Fork::Untried(why) => {
            Check::note("fork", format!("not tried: {why}"), "pandastack template build base")
        }
    }
}

fn own_uid(facts: &Facts) -> Check {
    let who = if facts.root { "root" } else { "rootless" };
    if facts.jail.level.own_uid {
        Check::ok("user", format!("{who}: each machine has a user id of its own"))
    } else {
        Check::note(
            "user",
            format!("{who}: machines share the server's user id"),
            "run the server as root to give each machine a user id of its own",
        )
    }
}

fn cgroup(facts: &Facts) -> Check {
    match facts.jail.level.cgroup {
        "none" => Check::note(
            "cgroup",
            "none that we may use: machines are bounded by rlimits only",
            "run as root, or have the memory and pids controllers delegated to this user",
        ),
        kind => {
            Check::ok("cgroup", format!("{kind}: memory and processes of machines are bounded"))
        }
    }
}

fn programs(facts: &Facts) -> Check {
    if facts.missing.is_empty() {
        return Check::ok("programs", "everything that template builds need is there");
    }
    let mut names: Vec<_> = facts.missing.iter().map(|missing| missing.program).collect();
    names.sort_unstable();
    let packages: Vec<_> = facts.missing.iter().map(|missing| missing.package).collect();
    let finding = format!("template builds need {}", names.join(", "));
    if some_built(facts) {
        Check::note("programs", finding, apt_line(&packages))
    } else {
        Check::missing("programs", finding, apt_line(&packages))
    }
}

fn some_built(facts: &Facts) -> bool {
    facts.templates.as_ref().is_ok_and(|all| all.iter().any(|(_, built)| *built))
}

fn templates(facts: &Facts) -> Check {
    let all = match &facts.templates {
        Ok(all) => all,
        Err(why) => {
            return Check::note(
                "templates",
                format!("unknown: {why}"),
                "fix what is missing above",
            );
        }
    };
    let part = |wanted: bool| -> Vec<&str> {
        all.iter().filter(|(_, built)| *built == wanted).map(|(name, _)| name.as_str()).collect()
    };
    let (built, unbuilt) = (part(true).join(", "), part(false).join(", "));
    match (built.is_empty(), unbuilt.is_empty()) {
        (_, true) => Check::ok("templates", format!("all built: {built}")),
        (false, _) => Check::note(
            "templates",
            format!("built: {built}; not built: {unbuilt}"),
            "pandastack template build --all",
        ),
        (true, _) => Check::note(
            "templates",
            format!("not built: {unbuilt}"),
            "pandastack template build --all, or let the first use build them",
        ),
    }
}

fn data_dir(facts: &Facts) -> Check {
    let dir = &facts.data_dir;
    let path = dir.path.display();
    if !dir.writable {
        let fix = "name another directory with --data-dir or PANDASTACK_DATA_DIR";
        return Check::missing("data dir", format!("{path} is not writable"), fix);
    }
    let free = dir.free.unwrap_or(u64::MAX);
    let finding = match dir.free {
        Some(free) => format!("{path}, {} free", indicatif::BinaryBytes(free)),
        None => format!("{path}, free space unknown"),
    };
    if free < NEEDED_DISK {
        Check::missing("data dir", finding, "make room: templates need some GiB")
    } else if dir.open_to_others {
        let fix = format!("chmod go-w {path}");
        Check::note("data dir", format!("{finding}, writable for others"), fix)
    } else if free < COMFORTABLE_DISK {
        Check::note("data dir", finding, "make room before you build every template")
    } else {
        Check::ok("data dir", finding)
    }
}

fn memory(facts: &Facts) -> Check {
    let Some(memory) = facts.memory else {
        return Check::note("memory", "unknown", "mount /proc");
    };
    let finding = format!("{} MiB, {} MiB available", memory.total_mb, memory.available_mb);
    if memory.available_mb < NEEDED_MEMORY_MB {
        Check::missing("memory", finding, "free some memory: a sandbox would not start")
    } else {
        Check::ok("memory", finding)
    }
}

fn server(facts: &Facts) -> Check {
    Check::ok(
        "server",
        match &facts.server {
            Some(url) => format!("answers at {url}"),
            None => "none answers; `pandastack run` needs none".to_owned(),
        },
    )
}

/// The line to type for these packages.
fn apt_line(packages: &[&str]) -> String {
    let mut packages = packages.to_vec();
    packages.sort_unstable();
    packages.dedup();
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pandastack_image::MissingProgram;
    use pandastack_jail::Level;

    use super::super::facts::{DataDir, Memory};
    use super::*;
    use crate::confinement::Confinement;

    fn level(namespaces: Result<(), String>, own_uid: bool, cgroup: &'static str) -> Confinement {
        let bounded = cgroup != "none";
        Confinement::of(Level {
            namespaces,
            own_uid,
            as_root: false,
            seccomp: true,
            landlock: 7,
            cgroup,
            bounds_memory: bounded,
            bounds_pids: bounded,
        })
    }

    fn good() -> Facts {
        Facts {
            kernel: "6.12".into(),
            root: true,
            qemu: Ok("QEMU emulator version 10".into()),
            wanted: EngineChoice::Auto,
            kvm_found: "/dev/kvm with kvm_amd".into(),
            kvm: Kvm::Proved(Duration::from_millis(20)),
            jail: level(Ok(()), true, "cgroup-v2"),
            reduced_jail_allowed: false,
            missing: Vec::new(),
            data_dir: DataDir {
                path: "/data".into(),
                writable: true,
                free: Some(100 << 30),
                open_to_others: false,
            },
            templates: Ok(vec![("base".into(), true)]),
            memory: Some(Memory { total_mb: 8192, available_mb: 4096 }),
            fork: Fork::Proved(Duration::from_secs(1)),
            server: None,
        }
    }

    /// The names of the checks that are not in order.
    fn complaints(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Verdict)> {
        let mut facts = good();
        change(&mut facts);
        let checks = judge(&facts).into_iter().filter(|check| check.verdict != Verdict::Ok);
        checks.map(|check| (check.name, check.verdict)).collect()
    }

    #[test]
    fn a_good_host_has_no_complaints() {
        assert_eq!(complaints(|_| {}), []);
    }

    #[test]
    fn what_is_essential_is_missing() {
        use Verdict::Missing;
        let without_qemu = |f: &mut Facts| {
            f.qemu = Err("no".into());
            f.wanted = EngineChoice::Qemu;
        };
        assert_eq!(complaints(without_qemu), [("qemu", Missing)]);
        let no_jail = level(Err("no".into()), true, "cgroup-v2");
        assert_eq!(complaints(|f| f.jail = no_jail), [("jail", Missing)]);
        assert_eq!(complaints(|f| f.data_dir.writable = false), [("data dir", Missing)]);
        assert_eq!(complaints(|f| f.data_dir.free = Some(1)), [("data dir", Missing)]);
        let little = Some(Memory { total_mb: 512, available_mb: 100 });
        assert_eq!(complaints(|f| f.memory = little), [("memory", Missing)]);
    }

    #[test]
    fn a_rootless_host_without_cgroups_is_usable_if_that_is_allowed() {
        for (allowed, verdict) in [(true, Verdict::Note), (false, Verdict::Missing)] {
            let found = complaints(|f| {
                f.root = false;
                f.jail = level(Ok(()), false, "none");
                f.reduced_jail_allowed = allowed;
            });
            let notes = [("user", Verdict::Note), ("cgroup", Verdict::Note)];
            assert_eq!(found[0], ("jail", verdict));
            assert_eq!(found[1..], notes);
        }
    }

    #[test]
    fn kvm_is_missing_only_where_it_was_asked_for() {
        let found = |wanted, qemu: Result<&str, &str>| {
            let without = |f: &mut Facts| {
                f.wanted = wanted;
                f.kvm = Kvm::Refused("no /dev/kvm".into());
                f.qemu = qemu.map(str::to_owned).map_err(str::to_owned);
            };
            let mut facts = good();
            without(&mut facts);
            (facts.engine().0, complaints(without))
        };
        let (note, missing) = (Verdict::Note, Verdict::Missing);
        assert_eq!(found(EngineChoice::Auto, Ok("10")), ("qemu", vec![("kvm", note)]));
        let nothing = vec![("kvm", note), ("qemu", missing)];
        assert_eq!(found(EngineChoice::Auto, Err("no")), ("qemu", nothing));
        assert_eq!(found(EngineChoice::Kvm, Err("no")), ("kvm", vec![("kvm", missing)]));
        assert_eq!(found(EngineChoice::Qemu, Ok("10")), ("qemu", vec![]));
        // Proved, and no QEMU: nothing is missing.
        assert_eq!(complaints(|f| f.qemu = Err("no".into())), []);
    }

    #[test]
    fn a_host_that_cannot_fork_is_usable_and_says_why() {
        let found = complaints(|f| f.fork = Fork::Refused("no user namespaces".into()));
        assert_eq!(found, [("fork", Verdict::Note)]);
    }

    #[test]
    fn build_programs_are_essential_until_something_is_built() {
        let missing = || vec![MissingProgram { program: "mkfs.erofs", package: "erofs-utils" }];
        assert_eq!(complaints(|f| f.missing = missing()), [("programs", Verdict::Note)]);
        let found = complaints(|f| {
            f.missing = missing();
            f.templates = Ok(vec![("base".into(), false)]);
        });
        assert_eq!(found, [("programs", Verdict::Missing), ("templates", Verdict::Note)]);
    }

    #[test]
    fn fixes_can_be_typed() {
        let mut facts = good();
        facts.missing = vec![
            MissingProgram { program: "b", package: "two" },
            MissingProgram { program: "a", package: "one" },
            MissingProgram { program: "c", package: "two" },
        ];
        let checks = judge(&facts);
        let fix = checks.iter().find_map(|check| check.fix.as_deref());
        assert_eq!(fix, Some("apt-get install --no-install-recommends one two"));
    }
}
