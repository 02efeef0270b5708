//! Reading request bodies: bounded in size and in time.
//!
//! JSON is read by hand-picked members ([`Fields`]): members that we do not know are ignored,
//! since clients of other versions send them, and a member of the wrong type is named in the
//! answer.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::error::ApiError;

/// Most bytes of a JSON body.
const MAX_JSON: usize = 1 << 20;
/// Time for a whole JSON body.
const JSON_TIME: Duration = Duration::from_secs(30);
/// Time for the next piece of a body of any length.
const IDLE: Duration = Duration::from_secs(60);

/// Bodies up to this length are read before their route runs.
const SMALL: u64 = 64 << 10;

/// Reads a small body before anything answers the request. A route that does not look at its body
/// (there is no such sandbox, say) would otherwise answer while the client still sends; the
/// connection could not be used again, and a client that does so all the same sees it break.
pub(crate) async fn read_small(request: Request, next: Next) -> Result<Response, ApiError> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if !length.is_some_and(|length: u64| (1..=SMALL).contains(&length)) {
        return Ok(next.run(request).await);
    }
    let (head, body) = request.into_parts();
    let bytes = timeout(JSON_TIME, body.collect())
        .await
        .map_err(|_| too_slow())?
        .map_err(|_| ApiError::bad_request("the request body broke off"))?
        .to_bytes();
    Ok(next.run(Request::from_parts(head, Body::from(bytes))).await)
}

/// A body that is read piece by piece.
pub(crate) struct Pieces(Body);

impl Pieces {
    pub(crate) fn new(body: Body) -> Self {
        Self(body)
    }

    /// The next bytes, or `None` at the end. Waits as long as it takes.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while let Some(frame) = self.0.frame().await {
            let frame = frame.map_err(|_| ApiError::bad_request("the request body broke off"))?;
            // Trailers carry nothing that we know.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next bytes, from a client that must not stop sending.
    pub(crate) async fn next_in_time(&mut self) -> Result<Option<Bytes>, ApiError> {
        timeout(IDLE, self.next()).await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// Reads a line of at most [`MAX_JSON`] bytes; what follows it is `rest` of the same piece.
    pub(crate) async fn line(&mut self) -> Result<(Bytes, Bytes), ApiError> {
        let read = async {
            let mut line = BytesMut::new();
            while let Some(piece) = self.next().await? {
                let from = line.len();
                line.extend_from_slice(&piece);
                let end = line[from..].iter().position(|byte| *byte == b'\n');
                let end = end.map(|at| from + at);
                if end.unwrap_or(line.len()) > MAX_JSON {
                    return Err(too_large(MAX_JSON as u64));
                }
                if let Some(end) = end {
                    let rest = line.split_off(end + 1).freeze();
                    return Ok((line.freeze(), rest));
                }
            }
            Ok((line.freeze(), Bytes::new()))
        };
        timeout(JSON_TIME, read).await.unwrap_or_else(|_| Err(too_slow()))
    }
}

/// The answer to a body that is too large.
pub(crate) fn too_large(limit: u64) -> ApiError {
    let text = format!("the request body is larger than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body came too slowly")
}

/// Reads the text of a body.
pub(crate) async fn text(body: Body) -> Result<Bytes, ApiError> {
    let mut pieces = Pieces::new(body);
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(piece) = pieces.next().await? {
            if bytes.len() + piece.len() > MAX_JSON {
                return Err(too_large(MAX_JSON as u64));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    };
    timeout(JSON_TIME, read).await.unwrap_or_else(|_| Err(too_slow()))
}

/// The members of a JSON object.
#[derive(Debug, Default)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body. An empty one has no members.
    pub(crate) async fn read(body: Body) -> Result<Self, ApiError> {
        Self::parse(&text(body).await?)
    }

    /// Reads the text of an object.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ApiError> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(members)) => Ok(Self(members)),
            Ok(_) => Err(ApiError::bad_request("the request body must be a JSON object")),
            Err(error) => Err(ApiError::bad_request(format!("invalid JSON: {error}"))),
        }
    }

    /// Refuses members of other names: where one that is misspelt would open more than was meant.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        let Some(name) = self.0.keys().find(|name| !known.contains(&name.as_str())) else {
            return Ok(());
        };
        // What a stranger wrote is shown, but not all of it.
        let shown: String = name.chars().take(32).collect();
        let known = known.join(", ");
        let text = format!("unknown field {shown:?}; the fields here are {known}");
        Err(ApiError::bad_request(text))
    }

    /// A member that is neither absent nor null.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A whole number. `30.0` is one, since some languages write it so.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        self.typed(name, "a whole number", |value| {
            value.as_i64().or_else(|| whole(value.as_f64()?))
        })
    }

    /// An object whose members are all strings.
    pub(crate) fn texts(&self, name: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let texts = self.typed(name, "an object with string values", |value| {
            let pair =
                |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.into()));
            value.as_object()?.iter().map(pair).collect::<Option<BTreeMap<_, _>>>()
        })?;
        Ok(texts.unwrap_or_default())
    }

    /// An array of strings.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.typed(name, "an array of strings", |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let read = read(value);
        read.map(Some).ok_or_else(|| ApiError::bad_request(format!("{name} must be {kind}")))
    }
}

/// A float that is a whole number which it can tell from its neighbours.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn absent_null_and_unknown_members_are_nothing() {
        for text in ["", " \n", "{}", r#"{"a":null,"zzz":{"deep":[1]}}"#] {
            let fields = fields(text);
            assert_eq!(fields.integer("a").unwrap(), None);
            assert_eq!(fields.text("a").unwrap(), None);
            assert!(fields.texts("a").unwrap().is_empty());
        }
    }

    #[test]
    fn whole_numbers_and_nothing_else() {
        for (text, value) in [("5", 5), ("-1", -1), ("30.0", 30), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(fields(&format!("{{\"n\":{text}}}")).integer("n").unwrap(), Some(value));
        }
        for text in ["1.5", "9223372036854775808", "1e300", "\"5\"", "true", "[]", "{}"] {
            let error = fields(&format!("{{\"n\":{text}}}")).integer("n").unwrap_err();
            assert_eq!(error.text, "n must be a whole number", "{text}");
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        let deep = "[".repeat(100_000);
        for text in [
            "1",
            "[]",
            "\"x\"",
            "{",
            "{}x",
            "{\"n\":1e400}",
            "{\"n\":NaN}",
            "{\"n\":-}",
            "{\"s\":\"\\ud800\"}",
            "\u{feff}{}",
            deep.as_str(),
        ] {
            let error = Fields::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
        assert!(Fields::parse(b"{\"s\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_wrong_type_names_its_member() {
        let fields = fields(r#"{"t":1,"b":"x","m":{"k":1},"l":[1],"a":"x"}"#);
        assert_eq!(fields.text("t").unwrap_err().text, "t must be a string");
        assert_eq!(fields.flag("b").unwrap_err().text, "b must be true or false");
        assert_eq!(fields.texts("m").unwrap_err().text, "m must be an object with string values");
        assert_eq!(fields.list("l").unwrap_err().text, "l must be an array of strings");
        assert!(fields.list("a").is_err());
    }

    #[tokio::test]
    async fn a_line_is_cut_from_what_follows() {
        let mut pieces = Pieces::new(Body::from("{\"a\":1}\nrest\n"));
        let (line, rest) = pieces.line().await.unwrap();
        assert_eq!((&line[..], &rest[..]), (&b"{\"a\":1}\n"[..], &b"rest\n"[..]));
        let mut pieces = Pieces::new(Body::from("{}"));
        assert_eq!(&pieces.line().await.unwrap().0[..], b"{}");
        let mut pieces = Pieces::new(Body::from(vec![b' '; MAX_JSON + 2]));
        assert_eq!(pieces.line().await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
