//! Size classes on their first use: one bake each, however many wait for it.
//!
//! ```text
//!   create ── not baked ──▶ join ──▶ wait ─┬─ baked ──▶ goes on as the default would
//!     create of the same ────┘  │          └─ takes longer ──▶ 503, come again: it goes on
//!                               ▼
//!                a task: turn ─▶ bake ─▶ the class that is used least goes
//! ```
//!
//! A bake is nobody's: whoever began it may leave, and it goes on. They are made one after the
//! other, and only so many may wait for their turn, because anybody may ask for any size.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pandastack_engine::Bake;
use pandastack_image::{Progress, Step};
use pandastack_types::{Size, SizeState, SizeView, TemplateName, TemplateView};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::error::{Chain, CreateError};
use crate::history::BakeStory;
use crate::host;
use crate::manager::Core;
use crate::sync::lock;
use crate::templates::{BakeError, Template};

/// Most classes that are being baked or wait for their turn.
const MAX_BAKING: usize = 8;
/// How long a create waits for a bake: published libraries give up after 30 s, and ask again only
/// if they were told to.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The bakes that are under way.
pub(crate) struct Classes {
    baking: Mutex<HashMap<(TemplateName, Size), Arc<Baking>>>,
    /// One bake at a time: two would each take twice as long, and the sandboxes' share with them.
    turn: Semaphore,
}

/// What came of a bake.
type Outcome = Result<Arc<Bake>, Arc<BakeError>>;

/// One bake.
struct Baking {
    began: Instant,
    step: Mutex<String>,
    /// Empty until it is over; closed without a word if it was given up.
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Classes {
    pub(crate) fn new() -> Self {
        Self { baking: Mutex::default(), turn: Semaphore::new(1) }
    }

    /// Classes of a template that are on their way.
    fn of(&self, template: &TemplateName) -> Vec<SizeView> {
        let baking = lock(&self.baking);
        let ours = baking.iter().filter(|((name, _), _)| name == template);
        ours.map(|((_, size), baking)| baking.view(*size)).collect()
    }
}

impl Baking {
    fn view(&self, size: Size) -> SizeView {
        SizeView {
            size,
            state: SizeState::Baking,
            step: Some(lock(&self.step).clone()),
            elapsed_ms: Some(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// Puts the steps of a bake where they are seen.
struct Shown {
    size: Size,
    baking: Arc<Baking>,
}

impl Progress for Shown {
    fn step(&self, step: &Step) {
        let text = format!("{}: {}", step.stage, step.detail);
        tracing::info!(template = %step.template, size = %self.size, step = text, "baking");
        *lock(&self.baking.step) = text;
    }
}

impl Core {
    /// The bake of a class, made if there is none. Waits for it, but not for ever: clients give up
    /// before a bake on a busy host is done.
    pub(crate) async fn class(
        self: &Arc<Self>,
        template: &Template,
        size: Size,
    ) -> Result<Arc<Bake>, CreateError> {
        let baking = self.join(template, size)?;
        let mut outcome = baking.outcome.clone();
        let over = timeout(self.config.bake_patience, outcome.wait_for(Option::is_some)).await;
        let template = template.name.clone();
        match over {
            Err(_) => {
                let step = lock(&baking.step).clone();
                Err(CreateError::Baking { template, size, step, elapsed: baking.began.elapsed() })
            }
            Ok(Err(_)) => Err(CreateError::ShuttingDown),
            Ok(Ok(outcome)) => match outcome.clone() {
                Some(Ok(bake)) => Ok(bake),
                Some(Err(source)) => Err(CreateError::Bake { template, size, source }),
                None => Err(CreateError::ShuttingDown),
            },
        }
    }

    /// The bake of a class that is under way, or a new one.
    fn join(self: &Arc<Self>, template: &Template, size: Size) -> Result<Arc<Baking>, CreateError> {
        let id = (template.name.clone(), size);
        let mut all = lock(&self.classes.baking);
        if let Some(baking) = all.get(&id) {
            return Ok(baking.clone());
        }
        if all.len() >= MAX_BAKING {
            return Err(CreateError::BakesWaiting(all.len()));
        }
        self.room_for_bake(size)?;
        let (told, outcome) = watch::channel(None);
        let step = Mutex::new("waiting: for its turn".to_owned());
        let baking = Arc::new(Baking { began: Instant::now(), step, outcome });
        all.insert(id.clone(), baking.clone());
        drop(all);
        let (core, made) = (self.clone(), baking.clone());
        self.tasks.spawn(async move {
            let making = core.bake_class(&id.0, size, made);
            // A server that stops waits for its tasks, and not for minutes.
            let made = core.pool.closed.run_until_cancelled(making).await;
            // Forgotten first: who asks from now on finds it on the shelf, or tries again.
            lock(&core.classes.baking).remove(&id);
            if let Some(made) = made {
                let _ = told.send(Some(made));
            }
        });
        Ok(baking)
    }

    async fn bake_class(
        &self,
        template: &TemplateName,
        size: Size,
        baking: Arc<Baking>,
    ) -> Outcome {
        // The semaphore is never closed.
        let _turn = self.classes.turn.acquire().await;
        let began = Instant::now();
        let story = BakeStory::begin(&self.store, template, size);
        tracing::info!(%template, %size, "a size class is baked");
        let progress = Arc::new(Shown { size, baking });
        match self.templates.bake(template, size, progress).await {
            Ok(bake) => {
                let seconds = began.elapsed().as_secs_f32();
                tracing::info!(%template, %size, seconds, "a size class is baked now");
                story.baked();
                self.evict_classes().await;
                Ok(bake)
            }
            Err(error) => {
                tracing::warn!(%template, %size, error = %Chain(&error), "a bake failed");
                story.failed(&error.to_string());
                Err(Arc::new(error))
            }
        }
    }

    async fn evict_classes(&self) {
        let (templates, keep) = (self.templates.clone(), self.config.size_classes);
        // Removes files.
        let evicting = tokio::task::spawn_blocking(move || templates.evict(keep));
        match evicting.await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(gone)) => tracing::info!(gone, "size classes that were not used are removed"),
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "cannot remove size classes"),
        }
    }

    /// A bake writes the guest's memory, whatever of it was touched.
    fn room_for_bake(&self, size: Size) -> Result<(), CreateError> {
        let needed_mb = u64::from(size.memory_mb) + self.config.disk_reserve_mb;
        match host::free_disk_mb(&self.machines) {
            Ok(free_mb) if free_mb < needed_mb => Err(CreateError::Disk { needed_mb, free_mb }),
            _ => Ok(()),
        }
    }

    /// Every template, with the classes that are on their way.
    pub(crate) fn template_views(&self) -> Vec<TemplateView> {
        let mut views = self.templates.list();
        for view in &mut views {
            let baking = self.classes.of(&view.name);
            let unfinished = |known: &SizeView| !baking.iter().any(|one| one.size == known.size);
            view.sizes.retain(unfinished);
            view.sizes.extend(baking);
            view.sizes.sort_by_key(|known| known.size);
        }
        views
    }
}
