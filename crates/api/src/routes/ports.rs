//! Ports of a sandbox, and what opens them.
//!
//! What is said of a port here is kept in the server's memory, for this sandbox alone: it ends with
//! the sandbox, and neither forks nor snapshots have it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use pandastack_sandbox::{Exposed, Port, PortError, Sandbox};
use pandastack_types::{PortSource, PortView, PreviewTokenView, TrafficTokenView};

use crate::Api;
use crate::body::Fields;
use crate::error::ApiError;
use crate::extract::Target;
use crate::preview::{Base, Claims, LINK};

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// A port as the API shows it.
struct Shown<'a> {
    api: &'a Api,
    base: Base,
    sandbox: &'a Sandbox,
}

impl<'a> Shown<'a> {
    fn new(api: &'a Api, headers: &HeaderMap, sandbox: &'a Sandbox) -> Self {
        Self { api, base: api.site.base(headers), sandbox }
    }

    fn port(&self, port: Port, exposed: Option<&Exposed>, listening: bool) -> PortView {
        let id = self.sandbox.id();
        PortView {
            port: port.number(),
            label: exposed.and_then(|exposed| exposed.label.clone()),
            listening,
            source: if exposed.is_some() { PortSource::User } else { PortSource::Detected },
            public: exposed.is_some_and(|exposed| exposed.public),
            proxy_url: self.base.url(&format!("/v1/sandboxes/{id}/proxy/{port}/")),
            preview_url: self.api.site.url(id, port),
        }
    }
}

/// The ports that are listed, and those that something listens on.
pub(crate) async fn list(
    State(api): State<Api>,
    Target(sandbox): Target,
    headers: HeaderMap,
) -> Result<Json<Vec<PortView>>, ApiError> {
    let listening = listening(&sandbox).await?;
    let exposed = sandbox.ingress().exposed();
    let shown = Shown::new(&api, &headers, &sandbox);
    let mut all: Vec<Port> = exposed.iter().map(|(port, _)| port).collect();
    all.extend(&listening);
    all.sort_unstable();
    all.dedup();
    let ports = all.into_iter();
    let ports = ports.map(|p| shown.port(p, exposed.get(p), listening.contains(&p)));
    Ok(Json(ports.collect()))
}

/// The ports that may be reached from outside and that something in the guest listens on.
async fn listening(sandbox: &Arc<Sandbox>) -> Result<Vec<Port>, ApiError> {
    let ports = sandbox.ports().await?;
    Ok(ports.into_iter().filter_map(|port| Port::try_from(i64::from(port)).ok()).collect())
}

/// Lists a port, and says whether anybody may reach it.
pub(crate) async fn expose(
    State(api): State<Api>,
    Target(sandbox): Target,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<PortView>), ApiError> {
    let fields = Fields::read(body).await?;
    let port = port_of(&fields)?;
    let exposed = Exposed {
        label: fields.text("label")?.map(str::to_owned),
        public: fields.flag("public")?.unwrap_or(false),
    };
    let listening = listening(&sandbox).await?;
    sandbox.ingress().expose(port, exposed.clone())?;
    let shown = Shown::new(&api, &headers, &sandbox);
    let shown = shown.port(port, Some(&exposed), listening.contains(&port));
    Ok((StatusCode::CREATED, Json(shown)))
}

fn port_of(fields: &Fields) -> Result<Port, ApiError> {
    let number =
        fields.integer("port")?.ok_or_else(|| ApiError::bad_request("port is required"))?;
    Ok(Port::try_from(number)?)
}

/// Takes a port off the list. One that is not on it is off it already.
pub(crate) async fn close(named: NamedPort) -> StatusCode {
    named.sandbox.ingress().close(named.port);
    StatusCode::NO_CONTENT
}

/// Makes an address of a port that carries its own permission, for a while.
pub(crate) async fn sign(
    State(api): State<Api>,
    Target(sandbox): Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PreviewTokenView>, ApiError> {
    let fields = Fields::read(body).await?;
    fields.only(&["port", "ttl_seconds", "paths"])?;
    let port = port_of(&fields)?;
    let paths = fields.list("paths")?;
    if paths.as_ref().is_some_and(Vec::is_empty) {
        let text = "paths is empty, which opens nothing; without it the whole port is opened";
        return Err(ApiError::bad_request(text));
    }
    let paths = paths.unwrap_or_default();
    let id = sandbox.id();
    let of = (id, sandbox.ingress().generation());
    let claims = Claims::asked(of, port, fields.integer("ttl_seconds")?, paths)?;
    let token = api.signer.sign(&claims)?;
    // What it opens, so that whoever follows it is let in.
    let path = claims.paths.first().map_or("/", String::as_str);
    let site = api.site.url(id, port).map(|site| format!("{site}{path}?token={token}"));
    Ok(Json(PreviewTokenView {
        url: api.site.base(&headers).url(&format!("{LINK}{token}/")),
        preview_url: site,
        token,
        sandbox_id: id,
        port: port.number(),
        expires_at: claims.expires_at(),
        paths: claims.paths,
    }))
}

/// The token of all ports of a sandbox.
pub(crate) async fn traffic(
    State(api): State<Api>,
    Target(sandbox): Target,
) -> Json<TrafficTokenView> {
    let traffic_token = traffic_token(&api, &sandbox);
    Json(TrafficTokenView { sandbox_id: sandbox.id(), traffic_token })
}

/// Makes every token of the sandbox void, and a new one for all of its ports.
pub(crate) async fn rotate(
    State(api): State<Api>,
    Target(sandbox): Target,
) -> Json<TrafficTokenView> {
    sandbox.ingress().revoke();
    traffic(State(api), Target(sandbox)).await
}

/// The token of all ports of a sandbox.
pub(crate) fn traffic_token(api: &Api, sandbox: &Sandbox) -> String {
    api.signer.traffic((sandbox.id(), sandbox.ingress().generation()))
}

/// The sandbox and the port that a path names.
pub(crate) struct NamedPort {
    sandbox: Arc<Sandbox>,
    port: Port,
}

impl FromRequestParts<Api> for NamedPort {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let path: Result<Path<(String, String)>, _> = Path::from_request_parts(parts, api).await;
        let Path((id, port)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        Ok(Self { sandbox: Target::named(&id, api)?.0, port: port.parse()? })
    }
}
