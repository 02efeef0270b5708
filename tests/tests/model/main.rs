//! Random operations of several clients at once, against a model of what must come of them.
//!
//! ```text
//!   seed ─▶ plan ─▶ operation ─┬─▶ server ─▶ answer ─┐
//!                              └─▶ reference ────────┴─▶ the same, or a failure with its story
//! ```
//!
//! Each client owns its sandboxes and snapshots; the server is everybody's, and is killed in the
//! middle of what the others do. At the end everything is read once more, everything is deleted, and
//! nothing of it may be left on the host.
//!
//! | variable | meaning |
//! |---|---|
//! | `PANDASTACK_MODEL_SEED` | the plan, 1 otherwise: what fails is then found again; 0 for a new one |
//! | `PANDASTACK_MODEL_OPERATIONS` | operations of all clients together, 500 otherwise |

mod actor;
mod aftermath;
mod guest;
mod operation;
mod plan;
mod reference;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use pandastack_tests::number;

use actor::Actor;
use world::World;

/// Clients at a time.
const CLIENTS: usize = 3;

#[test]
fn what_several_clients_do_at_once_is_what_the_model_says() -> Result<()> {
    let seed = match number("PANDASTACK_MODEL_SEED", 1) {
        0 => SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64 % 1_000_000,
        seed => seed,
    };
    let operations: usize = number("PANDASTACK_MODEL_OPERATIONS", 500);
    // Shown even if the run is cut short.
    eprintln!("PANDASTACK_MODEL_SEED={seed} PANDASTACK_MODEL_OPERATIONS={operations}");
    let begin = Instant::now();
    let world = World::start()?;
    let done = all_at_once(&world, seed, operations).with_context(|| format!("seed {seed}"))?;
    tell(&done);
    eprintln!("{} operations in {} s, seed {seed}", done.len(), begin.elapsed().as_secs());
    world.finish().with_context(|| format!("seed {seed}"))
}

/// What was done, and how long it took.
type Done = Vec<(String, Duration)>;

/// How often everything was done, and how long it took on average.
fn tell(done: &Done) {
    let mut kinds: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for (kind, took) in done {
        kinds.entry(kind).or_default().push(*took);
    }
    for (kind, took) in kinds {
        let mean = took.iter().sum::<Duration>() / took.len() as u32;
        eprintln!("{:>5} {kind:<15} {:>6} ms", took.len(), mean.as_millis());
    }
}

fn all_at_once(world: &World, seed: u64, operations: usize) -> Result<Done> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                // The first ones do what does not divide.
                let own = operations / CLIENTS + usize::from(number < operations % CLIENTS);
                scope.spawn(move || {
                    let mut actor = Actor::new(world, seed, number)?;
                    let outcome = actor.run(own).and_then(|()| actor.finish());
                    if outcome.is_err() {
                        world.stopped.store(true, Ordering::SeqCst);
                    }
                    outcome.map(|()| actor.done)
                })
            })
            .collect();
        let mut done = Vec::new();
        for client in clients {
            done.extend(client.join().expect("no panic")?);
        }
        Ok(done)
    })
}
