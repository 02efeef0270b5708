//! Creating a sandbox: request ─▶ template or snapshot ─▶ admission ─▶ bake? ─▶ launch.

use std::sync::Arc;
use std::time::Instant;

use pandastack_engine::Bake;
use pandastack_policy::Policy;
use pandastack_types::{SandboxId, Size, SizeLimits, SnapshotId, TemplateName, VolumeMount};

use crate::admission::Permit;
use crate::boot::Source;
use crate::error::{CreateError, InvalidRequest};
use crate::fault::{self, Point};
use crate::launch::{Created, Draft, Launch};
use crate::limits::Limits;
use crate::manager::{Creating, Manager};
use crate::metadata;
use crate::request::{self, NewSandbox};
use crate::sandbox::Birth;
use crate::snapshot::Thawed;
use crate::stages::Stages;
use crate::templates::Template;
use crate::volumes::{self, Reserved};

/// What a sandbox is made of, before its machine is there.
struct Origin {
    template: TemplateName,
    size: Size,
    source: Source,
    /// The template's bake behind it.
    ancestor: Arc<Bake>,
    permit: Permit,
    egress: Policy,
    /// The volumes that a snapshot has copies of.
    copies: Option<Vec<VolumeMount>>,
    /// From here on machines that nobody waits for have to wait.
    busy: Creating,
}

impl Manager {
    /// Creates a sandbox and waits until it is ready. Dropping the future undoes it.
    pub async fn create(&self, mut request: NewSandbox) -> Result<Created, CreateError> {
        let mut stages = Stages::start();
        let core = &self.core;
        let metadata = metadata::asked(std::mem::take(&mut request.metadata))?;
        let ttl = request.ttl_seconds.map(request::ttl).transpose()?;
        let idle_timeout = request.idle_timeout.map(request::idle_timeout).transpose()?;
        if request.from_snapshot.is_some() && !request.volumes.is_empty() {
            let text = "volumes cannot be given with from_snapshot: a snapshot has its own copies";
            return Err(InvalidRequest::Field(text.to_owned()).into());
        }
        let id = SandboxId::random();
        // Before a machine is taken for it that would be lost.
        let mut reserved = core.reserve(id, &request.volumes).await?;
        let mut volumes = std::mem::take(&mut request.volumes);
        let Origin { template, size, source, ancestor, permit, egress, copies, busy: _busy } =
            match request.from_snapshot {
                None => self.of_template(&request, &mut stages).await?,
                Some(id) => self.of_snapshot(id, &request, &mut stages)?,
            };
        if let (Some(copies), Source::Snapshot(bake, ..)) = (copies, &source) {
            reserved = Reserved::copies(&bake.dir, &copies);
            volumes = copies;
        }
        let limits =
            Limits::new(ttl, request.persistent, core.config.default_ttl_seconds, Instant::now());
        let limits = limits.idle(idle_timeout.unwrap_or(match request.persistent {
            true => core.config.idle_timeout_seconds,
            false => 0,
        }));
        let limits = limits.counting(request.ttl_mode);
        let birth = Birth {
            id,
            template,
            size,
            metadata,
            created_at: pandastack_store::now(),
            engine: core.engine.name(),
            isolation: core.engine.isolation(),
            jail: core.config.jail,
            ancestor,
            from_snapshot: request.from_snapshot,
            volumes,
        };
        let launch = Launch { birth, limits, egress, source, reserved, stages, permit };
        let draft = Draft::new(core, launch);
        core.open(std::slice::from_ref(&draft))?;
        fault::point(Point::CreateJournalled);
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
        let size = request::size(request, template.size, self.core.config.size_limits)?;
        let permit = self.core.admit(size)?;
        stages.mark("admission");
        let bake = self.bake(&template, size, stages).await?;
        // Not before: a bake may take long, and all others' machines are made ahead meanwhile.
        let busy = self.core.creating();
        self.core.pool.want(&bake, size == template.size);
        let source = self.core.pool.take(bake.clone());
        stages.mark("take");
        let template = request.template.clone();
        let egress = request.egress.clone().unwrap_or_default();
        let copies = None;
        Ok(Origin { template, size, source, ancestor: bake, permit, egress, copies, busy })
    }

    fn of_snapshot(
        &self,
        id: SnapshotId,
        request: &NewSandbox,
        stages: &mut Stages,
    ) -> Result<Origin, CreateError> {
        let Thawed { template, bake, token, lease, ancestor, egress, volumes, .. } =
            self.core.thaw(&self.core.snapshots, id)?;
        let egress = request.egress.clone().or(egress).ok_or(CreateError::DamagedPolicy(id))?;
        let size = bake.size;
        // It was let in when it was made, so the operator's limits are no matter here.
        let asked = request::size(request, size, SizeLimits::POSSIBLE).ok();
        if asked != Some(size) {
            let text = format!("a sandbox of this snapshot has {size}");
            return Err(InvalidRequest::Field(text).into());
        }
        let permit = self.core.admit(size)?;
        stages.mark("admission");
        let source = Source::thaw(bake, token, lease);
        let busy = self.core.creating();
        let copies = Some(volumes::copied(&volumes));
        Ok(Origin { template, size, source, ancestor, permit, egress, copies, busy })
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
        let bake = self.core.class(template, size).await?;
        stages.mark("bake");
        Ok(bake)
    }
}
