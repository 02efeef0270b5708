//! Why a flow is over.

use pandastack_policy::{Denied, Host};

use super::http::Head;

/// Longest target that is kept, for the log.
const MAX_TARGET: usize = 200;

/// Why a flow is over. Its text is one line for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The name that was said, if it could be read.
    pub name: Option<Host>,
    /// Method and target of the request, if it is about one. They are cut to a line.
    pub request: Option<(String, String)>,
    answer: Option<Answer>,
}

/// In what language the guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Http,
    Tls,
}

/// A fatal alert: access_denied.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

impl Refusal {
    pub(super) fn new(reason: Reason) -> Self {
        Self { reason, name: None, request: None, answer: None }
    }

    pub(super) fn named(self, name: &Host) -> Self {
        Self { name: Some(name.clone()), ..self }
    }

    pub(super) fn about(self, head: &Head<'_>) -> Self {
        let cut = |text: &str| text[..text.floor_char_boundary(MAX_TARGET)].to_owned();
        let request = Some((cut(head.method), cut(head.target)));
        Self { name: head.name().cloned(), request, ..self }
    }

    /// Can be answered, unless the server may be answering something else.
    pub(super) fn answered(self, answer: Answer, begun: bool) -> Self {
        Self { answer: Some(answer).filter(|_| !begun), ..self }
    }

    /// The rule that refused, such as `deny/2`.
    pub fn rule(&self) -> Option<String> {
        match self.reason {
            Reason::Denied(reason) => reason.rule(),
            _ => None,
        }
    }

    /// What can be said to the guest before its connection is closed: an answer of HTTP or an alert
    /// of TLS. Only where nothing was forwarded before, since the server may be speaking otherwise.
    pub fn response(&self) -> Option<Vec<u8>> {
        self.answer.map(|answer| match answer {
            Answer::Tls => ALERT.to_vec(),
            Answer::Http => {
                let text = format!("PandaStack: {}\n", self.reason);
                let len = text.len();
                let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8";
                format!("{head}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}").into()
            }
        })
    }
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Names are checked here, and there is none.
    #[error("{0} without a name, where names decide")]
    Nameless(&'static str),
    /// A name that is no name of a host.
    #[error("the name in the connection is an address or no name of a host")]
    NotAName,
    /// Encrypted ClientHello, or a client that pretends to it so that others stand out less.
    #[error("encrypted ClientHello hides the name: switch it off in the client")]
    Hidden,
    /// Not understood, or understood by different readers in different ways.
    #[error("{0}")]
    Malformed(&'static str),
    /// Nothing is understood of the most bytes that may wait.
    #[error("too long before it says where to")]
    TooLong,
    /// A rule names methods or paths, and they cannot be read.
    #[error("a rule for this name is about requests, which cannot be read in {0}")]
    Unreadable(&'static str),
    /// HTTP/2 in plaintext.
    #[error("HTTP/2 without TLS cannot be checked; use HTTP/1.1")]
    Http2,
    /// A port of the web where something else is spoken.
    #[error("only TLS and HTTP are spoken on port {0}, where names decide")]
    NotWeb(u16),
    /// DNS in HTTP or in TLS.
    #[error("a question to another resolver than the gateway")]
    Dns,
}
