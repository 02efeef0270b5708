//! Templates: read only.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use pandastack_types::{TemplateName, TemplateView};

use crate::Api;
use crate::error::ApiError;
use crate::extract::Segment;

pub(crate) async fn list(State(api): State<Api>) -> Json<Vec<TemplateView>> {
    Json(api.manager.template_views())
}

/// By name or alias.
pub(crate) async fn get(
    State(api): State<Api>,
    Segment(name): Segment,
) -> Result<Json<TemplateView>, ApiError> {
    let named = |view: &TemplateView, name: &TemplateName| {
        view.name == *name || view.aliases.contains(name)
    };
    let name: Option<TemplateName> = name.parse().ok();
    let view = name
        .and_then(|name| api.manager.template_views().into_iter().find(|view| named(view, &name)));
    view.map(Json).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "template not found"))
}
