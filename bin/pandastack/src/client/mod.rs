//! The client of the REST API: plain HTTP/1.1, one connection for each request.
//!
//! A connection is owned by the [`Reply`] that came over it, so giving up a reply closes the
//! connection, which is how the server learns that nobody waits for a command any more.

mod error;
mod sse;
mod url;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

pub use error::ClientError;
pub use sse::EventReader;
pub use url::{Base, query};

use crate::config::Endpoint;

/// What a request sends.
pub type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// How long a connection may take to come up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The largest answer that is read as one piece.
const ANSWER_LIMIT: usize = 64 << 20;
/// The largest explanation of an error.
const ERROR_LIMIT: usize = 64 << 10;

/// A request without a body.
pub fn no_body() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Talks to one server.
#[derive(Clone, Debug)]
pub struct Client {
    base: Base,
    token: Option<String>,
}

impl Client {
    /// A client of `endpoint`; nothing is sent yet.
    pub fn new(endpoint: &Endpoint) -> Result<Self, ClientError> {
        Ok(Self { base: Base::parse(&endpoint.url)?, token: endpoint.token.clone() })
    }

    /// The server's address, for messages.
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// Whether a server answers, and soon.
    pub async fn is_healthy(&self, within: Duration) -> bool {
        let asked = self.open(Method::GET, "/healthz", None, no_body());
        matches!(tokio::time::timeout(within, asked).await, Ok(Ok(_)))
    }

    /// Asks for an object.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.open(Method::GET, path, None, no_body()).await?.json().await
    }

    /// Sends an object, or nothing, and reads the one that comes back.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        object: &impl Serialize,
    ) -> Result<T, ClientError> {
        let text = serde_json::to_vec(object).map_err(ClientError::Request)?;
        let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
        self.open(method, path, Some("application/json"), body).await?.json().await
    }

    /// Asks for something to be done; the answer has no content.
    pub async fn act(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.open(method, path, None, no_body()).await.map(drop)
    }

    /// Sends a request, and returns the reply as soon as it begins, which may be while the
    /// request's body is still being sent. An answer that is not a success is an error.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: RequestBody,
    ) -> Result<Reply, ClientError> {
        let request = self.request(method, path, content_type, body)?;
        let (mut sender, connection) = self.connect().await?;
        // Errors of the connection come out at the request or at the body.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let response = sender.send_request(request).await.map_err(|e| self.lost(e))?;
        let reply = Reply { response, base: self.base.clone(), _connection: connection };
        if reply.response.status().is_success() { Ok(reply) } else { Err(reply.refusal().await) }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: RequestBody,
    ) -> Result<Request<RequestBody>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.base.path(path))
            .header(HOST, self.base.authority())
            .header(USER_AGENT, concat!("pandastack/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*");
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| ClientError::StrangeKey)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        request.body(body).map_err(|_| ClientError::BadUrl(self.url().to_owned()))
    }

    async fn connect(&self) -> Result<HttpConnection, ClientError> {
        let unreachable = |source| ClientError::NoServer { url: self.url().to_owned(), source };
        let (host, port) = self.base.address();
        let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((host, port)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unreachable)?;
        // Frames of an interactive command are small and must not wait for each other.
        stream.set_nodelay(true).map_err(unreachable)?;
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.lost(e))
    }

    fn lost(&self, source: hyper::Error) -> ClientError {
        ClientError::Lost { url: self.url().to_owned(), source: source.into() }
    }
}

type HttpConnection =
    (http1::SendRequest<RequestBody>, http1::Connection<TokioIo<TcpStream>, RequestBody>);

/// An answer that has begun, and the connection it comes over.
pub struct Reply {
    response: Response<Incoming>,
    base: Base,
    _connection: AbortOnDropHandle<()>,
}

impl Reply {
    /// The next piece of the body; `None` when it ended in good order.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let Some(frame) = self.response.body_mut().frame().await else { return Ok(None) };
            let frame = frame.map_err(|source| ClientError::Lost {
                url: self.base.as_str().to_owned(),
                source: source.into(),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body as an object; an empty one as `null`.
    async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let url = self.base.as_str().to_owned();
        let body = Limited::new(self.response.into_body(), ANSWER_LIMIT);
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(source) => return Err(ClientError::Lost { url, source }),
        };
        let text = if bytes.is_empty() { &b"null"[..] } else { &bytes };
        serde_json::from_slice(text).map_err(|source| ClientError::Answer { url, source })
    }

    async fn refusal(self) -> ClientError {
        let status: StatusCode = self.response.status();
        let body = Limited::new(self.response.into_body(), ERROR_LIMIT);
        let text = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
        ClientError::refused(status, &text)
    }
}

#[cfg(test)]
mod tests;
