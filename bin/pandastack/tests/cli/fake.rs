//! A server that plays along: it answers like the real one, runs nothing, and remembers what it
//! was asked.
//!
//! The "command" of an attach request is one of a few words: `cat` echoes standard input, `tee`
//! writes it to standard error too, `fail` exits with 7, `hang` never ends, `flood` never stops
//! printing, `late` runs into its deadline, `vanish` breaks off without a verdict.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The key that it accepts.
pub const KEY: &str = "pds_the-key-of-the-server-that-plays-along";
/// The sandboxes that it has from the start.
pub const IDS: [&str; 2] =
    ["1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "1b9e0000-bbfd-4b2d-9b5d-ab8dfbbd4bed"];
/// The sandbox that a create request gets.
pub const NEW: &str = "77aa6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed";

/// The server.
#[derive(Clone)]
pub struct Fake {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Every request, as `METHOD /path?query`.
    requests: Mutex<Vec<String>>,
    /// The files of its one file system; directories end with a slash.
    files: Mutex<BTreeMap<String, Entry>>,
    /// What clients sent in the first line of an attach request, or as a JSON body.
    bodies: Mutex<Vec<Value>>,
}

/// A file of the pretended guest.
#[derive(Clone)]
struct Entry {
    mode: &'static str,
    bytes: Bytes,
}

type Shelf = State<Arc<Shared>>;

impl Fake {
    /// Starts it.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        let one = "/v1/sandboxes/{id}";
        let router = Router::new()
            .route("/healthz", get(|| async { Json(json!({"status": "ok"})) }))
            .route("/v1/sandboxes", get(list).post(create))
            .route(one, get(show).delete(|| async { StatusCode::NO_CONTENT }))
            .route(&format!("{one}/pause"), post(|| async { StatusCode::NO_CONTENT }))
            .route(&format!("{one}/fork"), post(fork))
            .route(&format!("{one}/snapshots"), post(snapshot))
            .route("/v1/snapshots", get(snapshots))
            .route("/v1/snapshots/{id}", delete(|| async { StatusCode::NO_CONTENT }))
            .route(&format!("{one}/lifecycle"), axum::routing::patch(lifecycle))
            .route(&format!("{one}/logs"), get(logs))
            .route(&format!("{one}/ports"), get(ports).post(expose))
            .route(&format!("{one}/ports/{{port}}"), delete(|| async { StatusCode::NO_CONTENT }))
            .route(&format!("{one}/preview-token"), post(preview_token))
            .route(&format!("{one}/egress"), get(egress).put(set_egress))
            .route(&format!("{one}/egress/log"), get(egress_log))
            .route(&format!("{one}/exec"), post(exec))
            .route(&format!("{one}/exec/attach"), post(attach))
            .route(&format!("{one}/fs"), get(read).put(write))
            .route(&format!("{one}/fs/mkdir"), post(mkdir))
            .route(&format!("{one}/fs/stat"), get(stat))
            .route(&format!("{one}/fs/dir"), get(dir))
            .layer(from_fn_with_state(shared.clone(), check))
            .with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The objects that it was sent so far.
    pub fn bodies(&self) -> Vec<Value> {
        self.shared.bodies.lock().unwrap().clone()
    }

    /// Waits until it was asked for this.
    pub async fn asked(&self, request: &str) {
        for _ in 0..500 {
            if self.requests().iter().any(|asked| asked == request) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never asked for {request}, but for {:?}", self.requests());
    }

    /// Puts a file into the guest.
    pub fn put(&self, path: &str, mode: &'static str, text: &str) {
        let entry = Entry { mode, bytes: Bytes::copy_from_slice(text.as_bytes()) };
        self.shared.files.lock().unwrap().insert(path.to_owned(), entry);
    }

    /// The text of a file of the guest.
    pub fn text(&self, path: &str) -> Option<String> {
        let files = self.shared.files.lock().unwrap();
        files.get(path).map(|entry| String::from_utf8(entry.bytes.to_vec()).unwrap())
    }
}

async fn check(State(shared): Shelf, request: Request, next: Next) -> Response {
    let uri = request.uri();
    let asked = format!("{} {uri}", request.method());
    let key = request.headers().get("authorization").cloned();
    if uri.path() != "/healthz" && key.is_none_or(|key| key != format!("Bearer {KEY}")) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid API key"})))
            .into_response();
    }
    shared.requests.lock().unwrap().push(asked);
    next.run(request).await
}

fn view(id: &str) -> Value {
    json!({
        "id": id, "template": "base", "cpu": 1, "memory_mb": 512, "disk_mb": 2048, "status": "running",
        "metadata": {}, "boot_ms": 12, "boot_mode": "pool", "persistent": false,
        "created_at": "2026-01-01T00:00:00Z", "ttl_seconds": 60, "engine": "qemu",
        "isolation": "emulated", "egress": "none",
    })
}

async fn list() -> Json<Value> {
    Json(IDS.map(view).into())
}

async fn create(State(shared): Shelf, Json(body): Json<Value>) -> Response {
    let known = body["template"] == "base";
    shared.bodies.lock().unwrap().push(body);
    if known {
        (StatusCode::CREATED, Json(view(NEW))).into_response()
    } else {
        (StatusCode::BAD_REQUEST, Json(json!({"error": "unknown template"}))).into_response()
    }
}

async fn show(Path(id): Path<String>) -> Json<Value> {
    Json(view(&id))
}

async fn lifecycle(State(shared): Shelf, Json(body): Json<Value>) -> Json<Value> {
    let ttl = body["ttl_seconds"].clone();
    shared.bodies.lock().unwrap().push(body);
    Json(json!({"ttl_seconds": ttl, "persistent": false, "idle_seconds": 0}))
}

/// Makes all but one of the copies that it is asked for, if it is asked for several.
async fn fork(State(shared): Shelf, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    let count = body["count"].as_u64().unwrap();
    shared.bodies.lock().unwrap().push(body);
    let missing = json!([{"index": count - 1, "err": "not ready"}]);
    let answer = json!({
        "parent_id": id, "snapshot_id": null, "at": "2026-01-01T00:00:00Z",
        "sandbox": view(NEW), "children": vec![view(NEW); count.max(2) as usize - 1],
        "errors": if count > 1 { missing } else { json!([]) },
    });
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn snapshot(Path(id): Path<String>) -> Response {
    (StatusCode::CREATED, Json(snapshot_of(&id))).into_response()
}

async fn snapshots() -> Response {
    Json(json!({ "snapshots": [snapshot_of(IDS[0])] })).into_response()
}

fn snapshot_of(sandbox: &str) -> Value {
    json!({
        "id": NEW, "sandbox_id": sandbox, "template": "base", "cpu": 1, "memory_mb": 512,
        "disk_mb": 2048, "engine": "qemu", "size_bytes": 1, "created_at": "2026-01-01T00:00:00Z",
    })
}

async fn logs(Query(query): Query<BTreeMap<String, String>>) -> Response {
    if query.contains_key("follow") {
        let events = "data: {\"line\":\"one\"}\n\n: ping\n\ndata: {\"line\":\"two\"}\n\n";
        return ([("content-type", "text/event-stream")], events).into_response();
    }
    "one\ntwo".into_response()
}

fn port(port: i64, public: bool) -> Value {
    json!({
        "port": port, "label": null, "listening": true, "source": "user", "public": public,
        "proxy_url": format!("http://api.test/{port}/"),
        "preview_url": format!("http://{port}.test:7878"),
    })
}

async fn ports() -> Json<Value> {
    Json(json!([port(80, false), port(8000, true)]))
}

async fn expose(State(shared): Shelf, Json(body): Json<Value>) -> Response {
    let answer = port(body["port"].as_i64().unwrap(), body["public"] == true);
    shared.bodies.lock().unwrap().push(body);
    (StatusCode::CREATED, Json(answer)).into_response()
}

async fn preview_token(
    State(shared): Shelf,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Json<Value> {
    let answer = json!({
        "url": "http://api.test/p/t/", "preview_url": "http://8000.test:7878/?token=t",
        "token": "t", "sandbox_id": id, "port": body["port"], "paths": [],
        "expires_at": "2026-01-02T03:04:05Z",
    });
    shared.bodies.lock().unwrap().push(body);
    Json(answer)
}

async fn egress() -> Json<Value> {
    Json(json!({"allow": [{"host": "pypi.org"}]}))
}

async fn set_egress(State(shared): Shelf, Json(body): Json<Value>) -> Json<Value> {
    shared.bodies.lock().unwrap().push(body.clone());
    Json(body)
}

async fn egress_log(Query(query): Query<BTreeMap<String, String>>) -> Response {
    let entry = |number: u64| {
        json!({
            "number": number, "time": "2026-01-02T03:04:05Z", "kind": "dns", "verdict": "deny",
            "name": format!("{number}.test"), "reason": "no rule allows this name",
        })
    };
    if query.contains_key("follow") {
        let events =
            format!("id: 1\ndata: {}\n\n: ping\n\nid: 2\ndata: {}\n\n", entry(1), entry(2));
        return ([("content-type", "text/event-stream")], events).into_response();
    }
    Json(json!({"entries": [entry(1)], "next": 1})).into_response()
}

async fn exec(State(shared): Shelf, Json(body): Json<Value>) -> Json<Value> {
    shared.bodies.lock().unwrap().push(body);
    Json(json!({"stdout": "", "stderr": "", "exit_code": 0, "duration_ms": 1}))
}

fn frame(channel: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap();
    [&[channel][..], &length.to_be_bytes(), payload].concat().into()
}

fn exit(code: i32, timed_out: bool) -> Bytes {
    frame(3, json!({"exit_code": code, "timed_out": timed_out}).to_string().as_bytes())
}

async fn attach(State(shared): Shelf, body: Body) -> Response {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    tokio::spawn(play(shared, body, sender));
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
    });
    Body::from_stream(frames).into_response()
}

/// Plays the command of an attach request. Ends when nobody takes its frames any more.
async fn play(shared: Arc<Shared>, body: Body, frames: mpsc::Sender<Bytes>) -> Option<()> {
    let mut input = body.into_data_stream();
    let mut head = Vec::new();
    while !head.contains(&b'\n') {
        head.extend_from_slice(&input.next().await?.ok()?);
    }
    let end = head.iter().position(|&byte| byte == b'\n')?;
    let stdin = head.split_off(end + 1);
    let request: Value = serde_json::from_slice(&head).unwrap();
    let word = request["argv"][0].as_str().unwrap_or_default().to_owned();
    shared.bodies.lock().unwrap().push(request);
    match word.as_str() {
        "cat" | "tee" => {
            let mut pieces = futures_util::stream::iter([Ok(stdin.into())]).chain(input);
            while let Some(Ok(piece)) = pieces.next().await {
                frames.send(frame(1, &piece)).await.ok()?;
                if word == "tee" {
                    frames.send(frame(2, &piece)).await.ok()?;
                }
            }
            frames.send(exit(0, false)).await.ok()
        }
        "fail" => frames.send(exit(7, false)).await.ok(),
        "late" => frames.send(exit(124, true)).await.ok(),
        "vanish" => frames.send(frame(1, b"half")).await.ok(),
        "flood" => loop {
            frames.send(frame(1, &[b'y'; 4096])).await.ok()?;
        },
        "hang" => {
            frames.send(frame(1, b"hanging\n")).await.ok()?;
            // The end of a connection is behind what was not read of it.
            tokio::join!(frames.closed(), input.for_each(|_| async {}));
            shared.requests.lock().unwrap().push("hung up".to_owned());
            None
        }
        _ => frames.send(frame(4, br#"{"error":"no such command"}"#)).await.ok(),
    }
}

fn file_entry(name: &str, path: &str, entry: &Entry) -> Value {
    json!({
        "name": name, "path": path, "is_dir": entry.mode.starts_with('d'),
        "size": entry.bytes.len(), "mode": entry.mode, "mtime": 0,
    })
}

fn not_found(path: &str) -> Response {
    let text = format!("no such file or directory: {path}");
    (StatusCode::NOT_FOUND, Json(json!({"error": text}))).into_response()
}

type Parameters = Query<BTreeMap<String, String>>;

async fn read(State(shared): Shelf, query: Parameters) -> Response {
    let files = shared.files.lock().unwrap();
    let entry = files.get(&query["path"]);
    entry.map_or_else(|| not_found(&query["path"]), |entry| entry.bytes.clone().into_response())
}

async fn write(State(shared): Shelf, query: Parameters, bytes: Bytes) -> Json<Value> {
    let entry = Entry { mode: "-rw-r--r--", bytes };
    shared.files.lock().unwrap().insert(query["path"].clone(), entry);
    Json(json!({"path": query["path"]}))
}

async fn mkdir(State(shared): Shelf, query: Parameters) -> Json<Value> {
    let entry = Entry { mode: "drwxr-xr-x", bytes: Bytes::new() };
    shared.files.lock().unwrap().insert(query["path"].clone(), entry);
    Json(json!({"path": query["path"]}))
}

async fn stat(State(shared): Shelf, query: Parameters) -> Response {
    let path = &query["path"];
    let files = shared.files.lock().unwrap();
    files.get(path).map_or_else(
        || not_found(path),
        |entry| Json(file_entry(path.rsplit('/').next().unwrap(), path, entry)).into_response(),
    )
}

/// Lists what is directly in a directory; a name of the guest may hold anything, also slashes.
async fn dir(State(shared): Shelf, query: Parameters) -> Json<Value> {
    let prefix = format!("{}/", query["path"].trim_end_matches('/'));
    let files = shared.files.lock().unwrap();
    let inside = files.iter().filter_map(|(path, entry)| {
        let name = path.strip_prefix(&prefix)?;
        let deeper = name.contains('/') && !name.contains("..");
        (!deeper).then(|| file_entry(name, path, entry))
    });
    let entries: Vec<Value> = inside.collect();
    Json(json!({"path": query["path"], "entries": entries}))
}
