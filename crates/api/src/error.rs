//! Every answer that is not a success.
//!
//! The status decides what client libraries do, so each is chosen for that:
//!
//! | status | libraries | used for |
//! | --- | --- | --- |
//! | 503 + `Retry-After`, 507 | create again after a while | refused before anything existed; a policy not changed |
//! | 504 with `timeout` in the text | raise their timeout error | a command's time limit |
//! | other 5xx | raise, never send again | everything of ours that failed |
//! | 4xx | raise | requests that cannot succeed as they are |

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pandastack_sandbox::{
    Chain, CreateError, DeleteSnapshotError, ExecError, FileError, ForkError, GatewayError,
    InvalidRequest, LifecycleError, NoSnapshot, NoWake, NotFound, PromoteError, SnapshotError,
    Unavailable, VolumeError,
};
use pandastack_store::StoreError;
use serde_json::json;

/// Seconds after which a refused create is worth another try.
const RETRY_AFTER: u32 = 5;

/// An answer that is not a success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    pub(crate) retry_after: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry_after: None }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// A failure of ours. The client gets what happened, the log gets why.
    pub(crate) fn internal(status: StatusCode, error: &dyn std::error::Error) -> Self {
        tracing::warn!(error = %Chain(error), "a request failed");
        Self::new(status, error.to_string())
    }

    fn later(status: StatusCode, error: &dyn std::error::Error) -> Self {
        Self { retry_after: Some(RETRY_AFTER), ..Self::new(status, error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = match self.status {
            StatusCode::UNAUTHORIZED => json!({ "error": self.text, "detail": self.text }),
            _ => json!({ "error": self.text }),
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<NotFound> for ApiError {
    fn from(error: NotFound) -> Self {
        Self::new(StatusCode::NOT_FOUND, error.to_string())
    }
}

impl From<NoSnapshot> for ApiError {
    fn from(error: NoSnapshot) -> Self {
        Self::new(StatusCode::NOT_FOUND, error.to_string())
    }
}

impl From<Unavailable> for ApiError {
    fn from(error: Unavailable) -> Self {
        let status = match error {
            Unavailable::Creating(_) | Unavailable::Paused(_) | Unavailable::Hibernated(_) => {
                StatusCode::CONFLICT
            }
            Unavailable::NotWoken(_, NoWake::Full | NoWake::ShuttingDown) => {
                return Self::later(StatusCode::SERVICE_UNAVAILABLE, &error);
            }
            Unavailable::NotWoken(_, NoWake::Memory | NoWake::Disk) => {
                return Self::later(StatusCode::INSUFFICIENT_STORAGE, &error);
            }
            Unavailable::NotWoken(_, NoWake::Stale) => StatusCode::CONFLICT,
            Unavailable::NotWoken(_, NoWake::Failed) => StatusCode::INTERNAL_SERVER_ERROR,
            Unavailable::Ended { .. } => StatusCode::GONE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let error = match error {
            CreateError::Volume(error) => return error.into(),
            error => error,
        };
        match &error {
            CreateError::Invalid(_) | CreateError::UnknownTemplate(_) => {
                Self::bad_request(error.to_string())
            }
            CreateError::Building(_)
            | CreateError::Baking { .. }
            | CreateError::BakesWaiting(_)
            | CreateError::Full(_)
            | CreateError::ShuttingDown => Self::later(StatusCode::SERVICE_UNAVAILABLE, &error),
            CreateError::Network(GatewayError::Gone | GatewayError::Deadline) => {
                // Its machine has never run for anybody, and is gone.
                tracing::warn!(error = %Chain(&error), "no network for a sandbox");
                Self::later(StatusCode::SERVICE_UNAVAILABLE, &error)
            }
            CreateError::Memory { .. } | CreateError::Disk { .. } => {
                Self::later(StatusCode::INSUFFICIENT_STORAGE, &error)
            }
            CreateError::NoSnapshot(error) => (*error).into(),
            CreateError::Deleted
            | CreateError::StaleSnapshot { .. }
            | CreateError::DamagedPolicy(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            CreateError::Journal(StoreError::DiskFull) => {
                tracing::error!(error = %Chain(&error), "no space for records");
                Self::later(StatusCode::INSUFFICIENT_STORAGE, &error)
            }
            CreateError::Bake { .. }
            | CreateError::Journal(_)
            | CreateError::Machine(_)
            | CreateError::Network(_)
            | CreateError::Directory(_)
            | CreateError::NotReady(_)
            | CreateError::NotMounted(..)
            | CreateError::Volume(_)
            | CreateError::NotForked => Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        let status = match error {
            VolumeError::Invalid(error) => return error.into(),
            VolumeError::NotFound(_) => StatusCode::NOT_FOUND,
            VolumeError::Exists(_) | VolumeError::Attached { .. } | VolumeError::InUse { .. } => {
                StatusCode::CONFLICT
            }
            VolumeError::Quota(_) => StatusCode::TOO_MANY_REQUESTS,
            VolumeError::Disk { .. } => {
                return Self::later(StatusCode::INSUFFICIENT_STORAGE, &error);
            }
            VolumeError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            VolumeError::Journal(_) | VolumeError::Engine(_) | VolumeError::Files(_) => {
                return Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error);
            }
        };
        Self::new(status, error.to_string())
    }
}

impl From<ForkError> for ApiError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Invalid(error) => error.into(),
            ForkError::NotFound(error) => error.into(),
            ForkError::Unavailable(error) => error.into(),
            ForkError::Child(error) => error.into(),
            ForkError::Machine(_) => Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error),
            ForkError::Unsupported(_) => Self::new(StatusCode::NOT_IMPLEMENTED, error.to_string()),
        }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Copy(error) => error.into(),
            SnapshotError::Disk { .. } => Self::later(StatusCode::INSUFFICIENT_STORAGE, &error),
            SnapshotError::ShuttingDown => Self::later(StatusCode::SERVICE_UNAVAILABLE, &error),
            SnapshotError::Engine(_) | SnapshotError::Write(_) => {
                Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error)
            }
        }
    }
}

impl From<DeleteSnapshotError> for ApiError {
    fn from(error: DeleteSnapshotError) -> Self {
        match error {
            DeleteSnapshotError::NotFound(error) => error.into(),
            DeleteSnapshotError::Files(_) => {
                Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error)
            }
        }
    }
}

impl From<LifecycleError> for ApiError {
    fn from(error: LifecycleError) -> Self {
        match error {
            LifecycleError::Invalid(error) => error.into(),
            LifecycleError::Unavailable(error) => error.into(),
            LifecycleError::NotFound(error) => error.into(),
            LifecycleError::NotHibernated(error) => (*error).into(),
            LifecycleError::NotWoken(id, error) => {
                tracing::warn!(error = %Chain(&*error), "a sandbox was not woken");
                Unavailable::NotWoken(id, NoWake::from(&*error)).into()
            }
            // Setting a policy again does no harm.
            LifecycleError::CutOff(_) => {
                tracing::warn!(error = %Chain(&error), "a policy was not changed");
                Self::later(StatusCode::SERVICE_UNAVAILABLE, &error)
            }
            LifecycleError::Journal(_) | LifecycleError::Machine(_) => {
                Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &error)
            }
        }
    }
}

impl From<PromoteError> for ApiError {
    fn from(error: PromoteError) -> Self {
        match error {
            PromoteError::NotFound(error) => error.into(),
            PromoteError::Lifecycle(error) => error.into(),
            PromoteError::NoTree(_) | PromoteError::OtherTree(_) => {
                Self::bad_request(error.to_string())
            }
        }
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Invalid(error) => error.into(),
            ExecError::Unavailable(error) => error.into(),
            ExecError::Timeout(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
            ExecError::Refused(_) => Self::bad_request(error.to_string()),
            ExecError::TooMany => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            ExecError::Agent(_) => Self::internal(StatusCode::BAD_GATEWAY, &error),
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Invalid(error) => error.into(),
            FileError::Unavailable(error) => error.into(),
            FileError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            FileError::Refused(_) => Self::bad_request(error.to_string()),
            FileError::TooMany => Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            // Not 507: that is the host's, and libraries would try again.
            FileError::DiskFull => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            FileError::Agent(_) => Self::internal(StatusCode::BAD_GATEWAY, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pandastack_types::{EndReason, SandboxId, SnapshotId, TemplateName};

    use super::*;

    fn template() -> TemplateName {
        "base".parse().unwrap()
    }

    #[test]
    fn only_what_was_refused_beforehand_may_be_tried_again() {
        let retryable = [
            CreateError::Building(template()),
            CreateError::Full(4),
            CreateError::Memory { needed_mb: 1, free_mb: 0 },
            CreateError::ShuttingDown,
            CreateError::Journal(StoreError::DiskFull),
            CreateError::Network(GatewayError::Gone),
            CreateError::Network(GatewayError::Deadline),
        ];
        for error in retryable {
            let error = ApiError::from(error);
            assert!(matches!(error.status.as_u16(), 503 | 507), "{error:?}");
            assert!(error.retry_after.is_some(), "{error:?}");
        }
        let final_ones = [
            CreateError::UnknownTemplate(template()),
            CreateError::NoSnapshot(NoSnapshot(SnapshotId::random())),
            CreateError::StaleSnapshot { id: SnapshotId::random(), why: "" },
            CreateError::DamagedPolicy(SnapshotId::random()),
            CreateError::Network(GatewayError::Refused("by the test".to_owned())),
            CreateError::NotReady(Duration::from_secs(10)),
            CreateError::NotForked,
            CreateError::Journal(StoreError::Busy),
            CreateError::Deleted,
        ];
        for error in final_ones {
            let error = ApiError::from(error);
            assert!(!matches!(error.status.as_u16(), 429 | 503 | 507), "{error:?}");
            assert_eq!(error.retry_after, None, "{error:?}");
        }
    }

    #[test]
    fn a_time_limit_is_what_libraries_recognise() {
        let error = ApiError::from(ExecError::Timeout(Duration::from_secs(5)));
        assert_eq!(error.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(error.text, "exec timeout: command exceeded 5 seconds");
    }

    #[test]
    fn no_answer_invites_libraries_to_send_a_command_again() {
        let id = SandboxId::random();
        let unavailable = [
            Unavailable::Creating(id),
            Unavailable::Paused(id),
            Unavailable::Ended { id, reason: EndReason::GuestShutdown },
        ];
        let mut errors: Vec<ApiError> = unavailable.into_iter().map(ApiError::from).collect();
        errors.push(ExecError::Timeout(Duration::from_secs(1)).into());
        errors.push(ExecError::TooMany.into());
        errors.push(CreateError::NotReady(Duration::from_secs(1)).into());
        for error in errors {
            for phrase in ["connection refused", "no route to host", "i/o timeout"] {
                assert!(!error.text.contains(phrase), "{error:?}");
            }
        }
    }

    #[test]
    fn paused_and_ended_are_told_apart() {
        let id = SandboxId::random();
        let paused = ApiError::from(Unavailable::Paused(id));
        assert_eq!(paused.status, StatusCode::CONFLICT);
        assert_eq!(paused.text, "sandbox is paused; resume it first");
        let ended = ApiError::from(Unavailable::Ended { id, reason: EndReason::GuestShutdown });
        assert_eq!(ended.status, StatusCode::GONE);
        assert_eq!(ended.text, format!("sandbox {id} ended: guest_shutdown"));
    }
}
