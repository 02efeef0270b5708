//! Waiting for a size that the server has to prepare first, and showing how far it is.
//!
//! A server holds a create for a while and then says that it is not done; it goes on preparing.
//! What it says of the template tells that refusal from one that is meant.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use pandastack_image::{Progress, Stage, Step};
use pandastack_types::{SandboxView, Size, SizeState, SizeView, TemplateName, TemplateView};
use serde::Serialize;

use crate::client::{Client, ClientError};
use crate::progress::BuildProgress;

/// How long a create may take before it is worth asking why.
const QUIET: Duration = Duration::from_secs(1);
/// How often the server is asked how far it is.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a size may take altogether.
const PATIENCE: Duration = Duration::from_secs(900);

/// What somebody asks of a size; anything will do where it is absent.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The template.
    pub template: &'a str,
    /// vCPUs.
    pub cpu: Option<i64>,
    /// Guest memory in MiB.
    pub memory_mb: Option<i64>,
    /// Writable disk in MiB.
    pub disk_mb: Option<i64>,
}

impl Wanted<'_> {
    /// Whether this may be the size that the server makes of it, which rounds up.
    fn may_be(&self, size: Size) -> bool {
        let rounded = |asked: Option<i64>, got: u32, step: u32| {
            asked.is_none_or(|asked| (0..step.into()).contains(&(i64::from(got) - asked)))
        };
        rounded(self.cpu, size.cpu, 1)
            && rounded(self.memory_mb, size.memory_mb, Size::MEMORY_STEP_MB)
            && rounded(self.disk_mb, size.disk_mb, Size::DISK_STEP_MB)
    }
}

/// Creates a sandbox, however long its size has to be prepared.
pub async fn create(
    client: &Client,
    wanted: Wanted<'_>,
    request: &impl Serialize,
) -> Result<SandboxView, ClientError> {
    let begin = Instant::now();
    let shown = BuildProgress::default();
    loop {
        let seen = Cell::new(false);
        let creating = client.send(Method::POST, "/v1/sandboxes", request);
        let refused = tokio::select! {
            created = creating => match created {
                Err(error) if is_later(&error) => error,
                other => return other,
            },
            never = watch(client, wanted, &shown, &seen) => match never {},
        };
        // What was being prepared may be ready by now.
        let prepared = seen.get() || !baking(client, wanted).await.is_empty();
        if !prepared || begin.elapsed() > PATIENCE {
            return Err(refused);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Shows what the server prepares of it, for as long as it is polled, and notes in `seen`
/// that there was something.
async fn watch(
    client: &Client,
    wanted: Wanted<'_>,
    shown: &BuildProgress,
    seen: &Cell<bool>,
) -> Infallible {
    tokio::time::sleep(QUIET).await;
    loop {
        for class in baking(client, wanted).await {
            seen.set(true);
            let Ok(template) = wanted.template.parse::<TemplateName>() else { continue };
            let detail = format!("{}: {}", class.size, class.step.unwrap_or_default());
            shown.step(&Step { template, stage: Stage::Size, detail, fraction: None });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The sizes that are being prepared and may be meant.
async fn baking(client: &Client, wanted: Wanted<'_>) -> Vec<SizeView> {
    let path = format!("/v1/templates/{}", wanted.template);
    let view: Result<TemplateView, _> = client.get(&path).await;
    // A server that does not say is not waited for.
    let sizes = view.map(|view| view.sizes).unwrap_or_default();
    let meant = |class: &SizeView| class.state == SizeState::Baking && wanted.may_be(class.size);
    sizes.into_iter().filter(meant).collect()
}

fn is_later(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_known_by_what_was_asked_for() {
        let any = Wanted { template: "base", cpu: None, memory_mb: None, disk_mb: None };
        let size = Size { cpu: 2, memory_mb: 1024, disk_mb: 3072 };
        assert!(any.may_be(size));
        for (wanted, is) in [
            (Wanted { cpu: Some(2), ..any }, true),
            (Wanted { cpu: Some(1), ..any }, false),
            (Wanted { memory_mb: Some(1000), ..any }, true),
            (Wanted { memory_mb: Some(896), ..any }, false),
            (Wanted { disk_mb: Some(3000), memory_mb: Some(1024), ..any }, true),
            (Wanted { disk_mb: Some(3073), ..any }, false),
            (Wanted { disk_mb: Some(2816), ..any }, false),
        ] {
            assert_eq!(wanted.may_be(size), is, "{wanted:?}");
        }
    }
}
