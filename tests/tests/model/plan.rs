//! What a client does next: chance, weighted so that most of it is cheap.

use pandastack_tests::Random;

use crate::operation::{Act, Operation};
use crate::reference::{Life, Model};

/// Sandboxes that a client has at most.
pub const MOST_SANDBOXES: usize = 3;
/// Snapshots that a client has at most.
const MOST_SNAPSHOTS: usize = 2;
/// Different files in a sandbox.
const FILES: usize = 4;
/// The lifetimes that there are, in seconds: all of them longer than the test.
const LIFETIMES: [u64; 3] = [20_000, 30_000, 40_000];

/// The next operation of a client that has what the model says.
pub fn next(model: &Model, random: &mut Random) -> Operation {
    let alive: Vec<usize> = model.alive().collect();
    let room = MOST_SANDBOXES - alive.len().min(MOST_SANDBOXES);
    let ttl = LIFETIMES[random.below(LIFETIMES.len())];
    match random.below(100) {
        0 => Operation::KillServer,
        1..=5 => Operation::List,
        6..=11 if room > 0 => Operation::Create { ttl },
        12..=15 if room > 0 && !model.snapshots.is_empty() => {
            Operation::Restore { snapshot: snapshot(model, random), ttl }
        }
        16..=18 if !model.snapshots.is_empty() => {
            Operation::DeleteSnapshot { snapshot: snapshot(model, random) }
        }
        // Something that is gone is asked for now and then.
        19..=20 if !model.sandboxes.is_empty() => {
            let sandbox = random.below(model.sandboxes.len());
            let act = act(model, sandbox, room, random);
            Operation::On { sandbox, act }
        }
        _ if alive.is_empty() => Operation::Create { ttl },
        _ => {
            let sandbox = alive[random.below(alive.len())];
            let act = act(model, sandbox, room, random);
            Operation::On { sandbox, act }
        }
    }
}

/// A snapshot: mostly one that is there.
fn snapshot(model: &Model, random: &mut Random) -> usize {
    let kept: Vec<usize> = model.kept().collect();
    if kept.is_empty() || random.one_in(6) {
        return random.below(model.snapshots.len());
    }
    kept[random.below(kept.len())]
}

fn act(model: &Model, sandbox: usize, room: usize, random: &mut Random) -> Act {
    let life = model.sandboxes[sandbox].life;
    let value = random.draw() >> 12;
    let file = random.below(FILES);
    let has_machine = matches!(life, Life::Running | Life::Paused);
    // What stands still is of little use for long, and nor is what failed.
    match life {
        Life::Paused if random.one_in(3) => return Act::Resume,
        Life::Failed if random.one_in(2) => return Act::Delete,
        _ => {}
    }
    match random.below(100) {
        0..=19 => Act::Check,
        20..=29 => Act::Hold { value },
        30..=44 => Act::WriteFile { file, value },
        45..=54 => Act::ReadFile { file },
        55..=60 => Act::Pause,
        61..=63 => Act::Resume,
        64..=70 => Act::Hibernate,
        71..=74 => Act::Wake,
        75..=78 if model.kept().count() < MOST_SNAPSHOTS => Act::Snapshot,
        79..=84 if room > 0 => Act::Fork { children: 1 + random.below(room) },
        85..=87 => Act::SetTtl { ttl: LIFETIMES[random.below(LIFETIMES.len())] },
        88 if life != Life::Failed => Act::Expire,
        89..=90 if has_machine => Act::KillMachine,
        91..=94 => Act::Delete,
        _ => Act::Look,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Vec<Operation> {
        let mut random = Random::new(seed);
        let mut model = Model::default();
        let step = |_| {
            let operation = next(&model, &mut random);
            model.does(&operation);
            operation
        };
        (0..3000).map(step).collect()
    }

    #[test]
    fn a_plan_is_its_seed() {
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn everything_is_done_and_most_of_it_is_cheap() {
        let kinds: Vec<String> = plan(3).iter().map(Operation::kind).collect();
        let times = |kind: &str| kinds.iter().filter(|done| *done == kind).count();
        for kind in [
            "Create",
            "Restore",
            "DeleteSnapshot",
            "List",
            "KillServer",
            "Check",
            "Hold",
            "WriteFile",
            "ReadFile",
            "Pause",
            "Resume",
            "Hibernate",
            "Wake",
            "Snapshot",
            "Fork",
            "SetTtl",
            "Expire",
            "Look",
            "Delete",
            "KillMachine",
        ] {
            assert!(times(kind) > 3, "{kind}: {}", times(kind));
        }
        assert!(times("Hibernate") + times("Wake") + times("Snapshot") < kinds.len() / 4);
    }
}
