//! A server on loopback, its domain a fake, and a client that hides nothing.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../../sandbox/tests/support/mod.rs"]
pub mod world;

pub mod guests;

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pandastack_api::{Api, KeyRing, Options, serve};
use pandastack_sandbox::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use world::World;

pub struct Server {
    pub world: World,
    pub keys: KeyRing,
    pub key: String,
    pub address: SocketAddr,
    pub stop: Option<oneshot::Sender<()>>,
    pub serving: JoinHandle<std::io::Result<()>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The text of an answer that is not a success, which must have the contract's form.
    pub fn error(&self) -> String {
        assert!(!self.status.is_success(), "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json");
        self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}, Options::default()).await
    }

    /// A server that may fork, and makes nothing ahead.
    pub async fn forking() -> Self {
        Self::with(|config| config.forking = true, Options::default()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config), options: Options) -> Self {
        let world = World::with(change);
        let keys = KeyRing::new(world.store.clone());
        let key = keys.mint("test").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = Api::new(world.manager.clone(), keys.clone(), options).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, api, async move {
            let _ = stopped.await;
        }));
        Self { world, keys, key, address, stop: Some(stop), serving }
    }

    pub fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("authorization", format!("Bearer {}", self.key))
    }

    /// Sends a request on a connection of its own and returns the answer's head.
    pub async fn open<B>(&self, request: Request<B>) -> Response<Incoming>
    where
        B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.open(request).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.request(method, path).body(Full::new(body.into())).unwrap();
        self.send(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body.to_string()).await
    }

    /// Creates a sandbox and returns its path.
    pub async fn sandbox(&self) -> String {
        let answer = self.post("/v1/sandboxes", &json!({ "template": "base" })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        format!("/v1/sandboxes/{}", answer.json()["id"].as_str().unwrap())
    }

    /// Sends bytes as they are and returns everything that comes back.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A server that answers early may reset the connection; what it said is what counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}
