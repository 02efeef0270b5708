//! What can go wrong between us and a server, in words and with a hint.

use std::error::Error;
use std::io;

use http::StatusCode;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's URL cannot be used.
    #[error("{0:?} is not the URL of a server; it looks like http://127.0.0.1:7878")]
    BadUrl(String),
    /// The server wants TLS.
    #[error("{0} needs TLS, which this client does not speak")]
    Tls(String),
    /// The API key has characters that no key has.
    #[error("the API key contains characters that cannot be sent")]
    StrangeKey,
    /// The request could not be put into words.
    #[error("cannot write the request")]
    Request(#[source] serde_json::Error),
    /// Nobody listens.
    #[error("no server answers at {url}")]
    NoServer {
        /// Where it was looked for.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke after it had come up.
    #[error("the connection to {url} was lost")]
    Lost {
        /// The server.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The answer is not what the API promises.
    #[error("{url} sent an answer that makes no sense")]
    Answer {
        /// The server.
        url: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The server understood and said no.
    #[error("{message}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// Its explanation.
        message: String,
    },
}

impl ClientError {
    /// The error of an answer with a bad `status` and this body.
    pub(super) fn refused(status: StatusCode, body: &[u8]) -> Self {
        let parsed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let message = ["error", "message", "detail"]
            .iter()
            .find_map(|name| parsed.get(name)?.as_str())
            .map_or_else(|| format!("the server answered {status}"), str::to_owned);
        Self::Refused { status, message }
    }

    /// Whether the server says that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoServer { .. } => {
                Some("start a server with `pandastack serve`, or name one in PANDASTACK_API")
            }
            Self::Tls(_) => Some(
                "name the server's http:// address in PANDASTACK_API, through a tunnel if it is \
                 far away",
            ),
            Self::Refused { status: StatusCode::UNAUTHORIZED, .. } => Some(
                "set PANDASTACK_API_KEY to the server's key; it is in the file api-key of its \
                 data directory",
            ),
            _ => None,
        }
    }
}
