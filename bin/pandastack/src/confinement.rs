//! How far this host lets machines be confined, and whether that is enough.
//!
//! A jail has parts, and a host may lack some. Less than all of it is refused, unless the operator
//! says that it will do; every sandbox then says so, too.

use anyhow::bail;
use pandastack_jail::{Grade, Level};
use pandastack_types::JailLevel;

/// What there is of a jail.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Its parts.
    pub level: Level,
    /// What is missing, in words; nothing if it is whole.
    pub lacks: Vec<String>,
}

impl Confinement {
    /// Asks the host.
    pub fn find() -> Self {
        Self::of(pandastack_jail::probe())
    }

    /// Judges a level.
    pub fn of(level: Level) -> Self {
        Self { lacks: lacks(&level), level }
    }

    /// The label for it.
    pub fn grade(&self) -> JailLevel {
        if self.lacks.is_empty() { JailLevel::Full } else { JailLevel::Reduced }
    }

    /// The label and the parts, on one line.
    pub fn describe(&self) -> String {
        let missing = match self.grade() {
            JailLevel::Full => String::new(),
            JailLevel::Reduced => format!(" ({})", self.lacks.join(", ")),
        };
        format!("{}{missing}: {}", self.grade().as_str(), self.level)
    }

    /// Refuses a jail that is not whole, unless that is allowed; one that is none in any case.
    pub fn permit(&self, reduced_allowed: bool) -> anyhow::Result<()> {
        if let Err(why) = &self.level.namespaces {
            bail!("machines cannot be confined on this host: no namespaces: {why}");
        }
        if !self.lacks.is_empty() && !reduced_allowed {
            bail!(
                "this host cannot give machines the whole jail: {}. \
                 `pandastack doctor` says what to do about it; \
                 --allow-reduced-jail (PANDASTACK_ALLOW_REDUCED_JAIL=1) does without",
                self.lacks.join(", ")
            );
        }
        Ok(())
    }
}

fn lacks(level: &Level) -> Vec<String> {
    match level.grade() {
        Grade::Full => Vec::new(),
        Grade::Reduced(missing) => missing.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cgroup: &'static str, namespaces: Result<(), String>) -> Confinement {
        let bounded = cgroup != "none";
        Confinement::of(Level {
            namespaces,
            own_uid: false,
            as_root: false,
            seccomp: true,
            landlock: 7,
            cgroup,
            bounds_memory: bounded,
            bounds_pids: bounded,
        })
    }

    #[test]
    fn a_whole_jail_is_permitted_and_a_reduced_one_if_allowed() {
        let full = of("cgroup-v1", Ok(()));
        assert_eq!(full.grade(), JailLevel::Full);
        full.permit(false).unwrap();
        assert!(full.describe().starts_with("full: namespaces"), "{}", full.describe());

        let reduced = of("none", Ok(()));
        assert_eq!(reduced.grade(), JailLevel::Reduced);
        let refusal = reduced.permit(false).unwrap_err().to_string();
        assert!(refusal.contains("--allow-reduced-jail"), "{refusal}");
        reduced.permit(true).unwrap();
        assert!(reduced.describe().starts_with("reduced (no bound"));
    }

    #[test]
    fn no_jail_is_never_permitted() {
        let none = of("cgroup-v2", Err("not permitted".into()));
        for allowed in [false, true] {
            let refusal = none.permit(allowed).unwrap_err().to_string();
            assert!(refusal.contains("not permitted"), "{refusal}");
        }
    }
}
