//! The task that makes machines ahead of time.
//!
//! One per server, one machine at a time, and while no create is on its way, so that it costs
//! creates nothing. Zygotes are the exception: where creates never pause it makes one all the
//! same after a while, because that is what makes those creates cheap.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_engine::{Bake, Engine};

use crate::admission::Admission;
use crate::boot::{self, Housed};
use crate::error::{Chain, CreateError};
use crate::forking::Forking;
use crate::machines::new_name;
use crate::pool::{Need, Pool};

/// How often the keeper looks around without being called.
pub(crate) const TICK: Duration = Duration::from_secs(2);
/// How long a zygote waits for a moment without creates.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the keeper needs of the server. Asked anew each time, so that the keeper keeps nothing
/// alive.
pub(crate) struct Workshop {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) machines: PathBuf,
    pub(crate) admission: Arc<Admission>,
    pub(crate) deadline: Duration,
    /// Whether no create is on its way.
    pub(crate) quiet: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Runs until the pool is closed.
pub(crate) async fn keep(pool: Arc<Pool>, shop: Workshop) {
    let mut quiet_at = Instant::now();
    while !pool.closed.is_cancelled() && pool.is_of_use() {
        let now = Instant::now();
        for housed in pool.surplus(now, shop.admission.is_short()) {
            housed.machine.kill().await;
        }
        let quiet = (shop.quiet)();
        if quiet {
            quiet_at = now;
        }
        match pool.deficit(now, &shop.admission) {
            Some(Need::Zygote(bake)) if quiet || now - quiet_at >= PATIENCE => {
                shop.make_zygote(&pool, &bake).await;
                continue;
            }
            Some(Need::Parked(bake, zygote)) if quiet => {
                shop.park(&pool, &bake, zygote).await;
                continue;
            }
            _ => {}
        }
        tokio::select! {
            () = pool.wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
            () = pool.closed.cancelled() => {}
        }
    }
}

impl Workshop {
    async fn make_zygote(&self, pool: &Arc<Pool>, bake: &Bake) {
        let proving = pool.prover.prove(bake);
        let proved = pool.closed.run_until_cancelled(proving).await;
        if proved != Some(Forking::Proven) {
            return;
        }
        let Some(made) = pool.closed.run_until_cancelled(self.restore(bake)).await else { return };
        match made {
            Ok(housed) => {
                // It stands still, which costs nothing, and somebody waits for its forks.
                housed.machine.set_background(false);
                pool.enthrone(bake, housed).await;
            }
            Err(error) => give_up(pool, bake, &error),
        }
    }

    async fn park(&self, pool: &Arc<Pool>, bake: &Bake, zygote: Option<Arc<Housed>>) {
        let making = async {
            match &zygote {
                // Warm by inheritance.
                Some(zygote) => {
                    boot::fork_one(zygote, &self.machines, new_name(), self.deadline).await
                }
                None => self.restore(bake).await,
            }
        };
        // Dropping the attempt kills its machine and removes its directory.
        let Some(made) = pool.closed.run_until_cancelled(making).await else { return };
        match (made, zygote) {
            (Ok(housed), _) => self.shelve(pool, bake, housed).await,
            (Err(CreateError::Machine(error)), Some(zygote)) => {
                pool.condemn(&bake.key, &zygote, &error).await;
            }
            (Err(error), _) => give_up(pool, bake, &error),
        }
    }

    /// Parks a machine with everything done that can be. One that cannot be made ready says nothing
    /// about the zygote that it is a fork of.
    async fn shelve(&self, pool: &Arc<Pool>, bake: &Bake, housed: Housed) {
        let readying = housed.machine.make_ready();
        let Some(ready) = pool.closed.run_until_cancelled(readying).await else { return };
        match ready {
            Ok(_) => pool.shelve(bake, housed).await,
            Err(error) => give_up(pool, bake, &CreateError::Machine(error)),
        }
    }

    async fn restore(&self, bake: &Bake) -> Result<Housed, CreateError> {
        boot::park(&*self.engine, &self.machines, bake, self.deadline).await
    }
}

fn give_up(pool: &Pool, bake: &Bake, error: &CreateError) {
    tracing::warn!(bake = bake.key, error = %Chain(error), "cannot make a machine ahead");
    pool.failed(&bake.key);
}
