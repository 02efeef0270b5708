//! Parts of a request's address.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use pandastack_sandbox::Sandbox;
use pandastack_types::SandboxId;

use crate::Api;
use crate::error::ApiError;

/// The sandbox that `{id}` names. What is no id names none.
pub(crate) struct Target(pub(crate) Arc<Sandbox>);

impl FromRequestParts<Api> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        Self::named(&segment(parts, api).await?, api)
    }
}

impl Target {
    pub(crate) fn named(id: &str, api: &Api) -> Result<Self, ApiError> {
        let id: SandboxId =
            id.parse().map_err(|error| not_found(format!("sandbox not found: {error}")))?;
        Ok(Self(api.manager.get(id)?))
    }
}

/// The one free segment of a path.
pub(crate) struct Segment(pub(crate) String);

impl FromRequestParts<Api> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        segment(parts, api).await.map(Self)
    }
}

async fn segment(parts: &mut Parts, api: &Api) -> Result<String, ApiError> {
    let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, api).await;
    path.map(|Path(text)| text).map_err(|error| ApiError::bad_request(error.body_text()))
}

fn not_found(text: String) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, text)
}

/// The query of an address. Of members that occur twice, the last one counts.
#[derive(Debug)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<BTreeMap<String, String>>::try_from_uri(uri);
        query
            .map(|members| Self(members.0))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A path in the guest.
    pub(crate) fn path(&self) -> Result<String, ApiError> {
        let path = self.text("path").filter(|path| !path.is_empty());
        path.map(str::to_owned).ok_or_else(|| ApiError::bad_request("path is required"))
    }

    /// `1` and `true` are yes; absent, `0` and `false` are no.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            None | Some("" | "0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(_) => Err(ApiError::bad_request(format!("{name} must be true or false"))),
        }
    }

    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.text(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let number = text.parse();
        let refused = |_| ApiError::bad_request(format!("{name} must be a whole number from 0 on"));
        number.map(Some).map_err(refused)
    }
}

impl FromRequestParts<Api> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        Self::of(&parts.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn spaces_may_be_written_as_plus() {
        assert_eq!(query("path=%2Fa+b%20c%2B").path().unwrap(), "/a b c+");
        for missing in ["", "path=", "other=1"] {
            assert_eq!(query(missing).path().unwrap_err().text, "path is required");
        }
    }

    #[test]
    fn both_spellings_of_follow() {
        assert!(query("follow=true").flag("follow").unwrap());
        assert!(query("follow=1").flag("follow").unwrap());
        assert!(!query("follow=false").flag("follow").unwrap());
        assert!(!query("").flag("follow").unwrap());
        assert!(query("follow=maybe").flag("follow").is_err());
    }

    #[test]
    fn counts_are_not_negative() {
        assert_eq!(query("tail=5").count("tail").unwrap(), Some(5));
        assert_eq!(query("").count("tail").unwrap(), None);
        for bad in ["-1", "1.5", "x", "99999999999999999999999"] {
            assert!(query(&format!("tail={bad}")).count("tail").is_err(), "{bad}");
        }
    }
}
