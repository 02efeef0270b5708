//! Creating a sandbox: request ─▶ template or snapshot ─▶ admission ─▶ bake? ─▶ launch.

use std::sync::Arc;
use std::time::Instant;

use pandastack_engine::Bake;
use pandastack_types::{SandboxId, Size, SnapshotId, TemplateName};
use time::OffsetDateTime;

use crate::admission::Permit;
use crate::boot::Source;
use crate::error::{CreateError, InvalidRequest};
use crate::launch::{Created, Draft, Launch};
use crate::limits::Limits;
use crate::manager::Manager;
use crate::metadata;
use crate::request::{self, NewSandbox};
use crate::sandbox::Birth;
use crate::snapshot::Thawed;
use crate::stages::Stages;
use crate::templates::Template;

/// What a sandbox is made of, before its machine is there.
struct Origin {
    template: TemplateName,
    size: Size,
    source: Source,
    /// The template's bake behind it.
    ancestor: Arc<Bake>,
    permit: Permit,
}

impl Manager {
    /// Creates a sandbox and waits until it is ready. Dropping the future undoes it.
    pub async fn create(&self, mut request: NewSandbox) -> Result<Created, CreateError> {
        let mut stages = Stages::start();
        let core = &self.core;
        let _busy = core.creating();
        let metadata = metadata::asked(std::mem::take(&mut request.metadata))?;
        let ttl = request.ttl_seconds.map(request::ttl).transpose()?;
        let Origin { template, size, source, ancestor, permit } = match request.from_snapshot {
            None => self.of_template(&request, &mut stages).await?,
            Some(id) => self.of_snapshot(id, &request, &mut stages)?,
        };
        let limits =
            Limits::new(ttl, request.persistent, core.config.default_ttl_seconds, Instant::now());
        let birth = Birth {
            id: SandboxId::random(),
            template,
            size,
            metadata,
            created_at: OffsetDateTime::now_utc(),
            engine: core.engine.name(),
            isolation: core.engine.isolation(),
            jail: core.config.jail,
            ancestor,
            from_snapshot: request.from_snapshot,
        };
        let draft = Draft::new(core, Launch { birth, limits, source, stages, permit });
        core.open(std::slice::from_ref(&draft))?;
        draft.begin(core).ready().await
    }

    async fn of_template(
        &self,
        request: &NewSandbox,
        stages: &mut Stages,
    ) -> Result<Origin, CreateError> {
        let found = self.core.templates.find(&request.template);
        let template =
            found.ok_or_else(|| CreateError::UnknownTemplate(request.template.clone()))?;
        let size = request::size(request.cpu, request.memory_mb, template.size)?;
        let permit = self.core.admit(size)?;
        stages.mark("admission");
        let bake = self.bake(&template, size, stages).await?;
        self.core.pool.want(&bake, size == template.size);
        let source = self.core.pool.take(bake.clone());
        stages.mark("take");
        let template = request.template.clone();
        Ok(Origin { template, size, source, ancestor: bake, permit })
    }

    fn of_snapshot(
        &self,
        id: SnapshotId,
        request: &NewSandbox,
        stages: &mut Stages,
    ) -> Result<Origin, CreateError> {
        let Thawed { template, bake, token, ancestor } = self.thaw(id)?;
        let size = bake.size;
        if request::size(request.cpu, request.memory_mb, size)? != size {
            let text = format!(
                "a sandbox of this snapshot has {} vCPU and {} MiB",
                size.cpu, size.memory_mb
            );
            return Err(InvalidRequest::Field(text).into());
        }
        let permit = self.core.admit(size)?;
        stages.mark("admission");
        Ok(Origin { template, size, source: Source::thaw(bake, token), ancestor, permit })
    }

    async fn bake(
        &self,
        template: &Template,
        size: Size,
        stages: &mut Stages,
    ) -> Result<Arc<Bake>, CreateError> {
        if let Some(bake) = self.core.templates.baked(&template.name, size) {
            return Ok(bake);
        }
        if !template.built {
            return Err(CreateError::Building(template.name.clone()));
        }
        // In a task of its own: others may be waiting for the same bake, and it is not wasted
        // when this requester goes away.
        let templates = self.core.templates.clone();
        let name = template.name.clone();
        let baking = tokio::spawn(async move { templates.bake(&name, size).await });
        let baked = baking.await.map_err(|_| CreateError::Building(template.name.clone()))?;
        stages.mark("bake");
        baked.map_err(|source| CreateError::Bake { template: template.name.clone(), source })
    }
}
