//! Templates that are not built yet, built beside the running server.

use std::sync::Arc;

use pandastack_image::ImageError;
use pandastack_sandbox::Manager;
use pandastack_types::{Size, TemplateName};
use tokio::task::JoinHandle;

use crate::terminal;
use crate::workshop::{Asked, Workshop};

/// Builds under way.
pub struct Builds(JoinHandle<()>);

/// Builds what is not built, one after the other: two at once would each take twice as long.
pub fn start(workshop: &Workshop, manager: Arc<Manager>) -> Builds {
    let workshop = workshop.clone();
    Builds(tokio::spawn(async move {
        for view in workshop.catalog.list().into_iter().filter(|view| !view.built) {
            let size = Size { cpu: view.cpu, memory_mb: view.memory_mb, disk_mb: view.disk_mb };
            let story = manager.bake_begins(&view.name, size);
            let built = build(&workshop, &view.name).await;
            match built {
                Ok(()) => {
                    story.baked();
                    terminal::line(&format!("template {} is ready", view.name));
                    manager.prime();
                }
                Err(error) => {
                    story.failed(&error.to_string());
                    terminal::line(&format!("template {} is not built: {error:#}", view.name));
                    // What is missing for one is missing for all.
                    if matches!(error.downcast_ref(), Some(ImageError::MissingPrograms(_))) {
                        return;
                    }
                }
            }
        }
    }))
}

async fn build(workshop: &Workshop, name: &TemplateName) -> anyhow::Result<()> {
    let recipe = workshop.recipe(name)?;
    workshop.ready(recipe, Asked::default()).await.map(drop)
}

impl Builds {
    /// Gives up what is not finished; nothing half-made is left.
    pub async fn stop(self) {
        self.0.abort();
        // The task's own end, or our abort: both are fine.
        let _ = self.0.await;
    }
}
