//! What a TCP flow says: the name in it, and its requests.
//!
//! The invariant: **no byte goes out that was not judged before**, and what is judged is what the
//! server reads: anything that two readers might understand differently is refused.
//!
//! ```text
//!             ┌──▶ TLS: ClientHello ── its name is judged ─────────────────▶ open
//!   first     │
//!   bytes ────┼──▶ HTTP: head ── judged ──▶ body, to its exact end ──▶ head ──▶ …
//!             │            └── Upgrade ──▶ first bytes, once more
//!             └──▶ anything else: no name in it ───────────────────────────▶ open
//! ```
//!
//! | asked | TLS | HTTP | anything else |
//! | --- | --- | --- | --- |
//! | [`Check::Nothing`] | open | open | open |
//! | [`Check::Name`] | the server name; no ECH | each request | open, but not on ports 80 and 443 |
//! | [`Check::Requests`] | refused | each request; no Upgrade | refused |

//!
//! After an Upgrade the server may speak another protocol or may have ignored it, which nobody knows
//! who reads one direction. So what follows is looked at once more like the first bytes of a flow:
//! it is another request, or nothing that a server of HTTP takes for one.
//!
//! HTTP/2 without TLS is refused. Its names are compressed against everything before them, and
//! hardly a client speaks it.

mod http;
mod refusal;
#[cfg(test)]
mod tests;
pub mod tls;

use pandastack_policy::{Check, Host, Request, Verdict};

use self::http::{Body, First, Head, Named};
use self::refusal::Answer;
pub use self::refusal::{Reason, Refusal};
use self::tls::ClientHello;

/// Decides for an [`Inspector`]: [`pandastack_policy::Policy`] with what is known of the flow.
pub trait Judge {
    /// Whether the flow may say this name: [`pandastack_policy::Policy::said`].
    fn name(&mut self, name: &Host) -> Verdict;
    /// Whether the request may be made: [`pandastack_policy::Policy::request`].
    fn request(&mut self, request: &Request<'_>) -> Verdict;
}

/// Reads what a guest sends in one flow, before it is forwarded.
#[derive(Debug)]
pub struct Inspector {
    check: Check,
    passed: Check,
    port: u16,
    state: State,
    /// Whether another protocol may follow the request.
    upgrade: bool,
    /// Whether the server has got anything.
    begun: bool,
    /// What was asked for last: its body may be on the way, and its answer.
    latest: Option<Latest>,
}

/// A request that went out.
#[derive(Debug)]
struct Latest {
    host: Host,
    method: String,
    /// Absent if it is too long to be kept.
    target: Option<String>,
    overridden: bool,
}

/// Longest target and method that are kept: twice the longest path of a rule.
const MAX_KEPT: usize = 2048;

impl Latest {
    fn of(head: &Head<'_>) -> Option<Self> {
        let kept = |text: &str| (text.len() <= MAX_KEPT).then(|| text.to_owned());
        let (host, overridden) = (head.name()?.clone(), head.overridden);
        let (method, target) = match kept(head.method) {
            Some(method) => (method, kept(head.target)),
            None => (String::new(), None),
        };
        Some(Self { host, method, target, overridden })
    }
}

/// What comes next.
#[derive(Debug)]
enum State {
    First,
    Tls,
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Open,
    Refused(Refusal),
}

/// What to do with the bytes that are there.
enum Step {
    /// So many are forwarded, perhaps none; there is something else to do.
    Forward(usize),
    /// They are not enough.
    More,
}

impl Inspector {
    /// Most bytes that may wait to be understood. Whoever keeps as many has kept enough.
    pub const MAX_PENDING: usize = 17 << 10;

    /// For a flow to this port that has so much to show.
    pub fn new(check: Check, port: u16) -> Self {
        let (state, passed) = match check {
            Check::Nothing => (State::Open, Check::Nothing),
            // It can still be read from its start.
            Check::Name | Check::Requests => (State::First, Check::Requests),
        };
        Self { check, passed, port, state, upgrade: false, begun: false, latest: None }
    }

    /// How many of the bytes may be forwarded. `pending` is all that the guest has sent and that
    /// was not forwarded yet, and what this returns is taken for forwarded. Call it again at once
    /// while it returns more than nothing and there is a rest; at `Ok(0)`, when there is more. An
    /// error stays: the flow is over, and nothing of `pending` may go out.
    pub fn pass(&mut self, pending: &[u8], judge: &mut dyn Judge) -> Result<usize, Refusal> {
        let mut passed = 0;
        while let Some(rest) = pending.get(passed..).filter(|rest| !rest.is_empty()) {
            match self.step(rest, judge) {
                Ok(Step::Forward(len)) => {
                    passed += len;
                    self.begun |= len > 0;
                }
                Ok(Step::More) => break,
                Err(refusal) => {
                    self.state = State::Refused(refusal.clone());
                    // What is before the refused bytes goes out first.
                    return if passed > 0 { Ok(passed) } else { Err(refusal) };
                }
            }
        }
        Ok(passed)
    }

    /// Whether nothing is left to check: everything goes through from here on.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// How much of a check the flow has passed and still can, for
    /// [`pandastack_policy::Policy::still_allows`].
    pub fn passed(&self) -> Check {
        self.passed
    }

    /// What is asked from here on, after a policy has changed. A flow that cannot show so much, by
    /// [`Inspector::passed`], is over.
    pub fn require(&mut self, check: Check) {
        self.check = check;
        if check > self.passed {
            self.state = State::Refused(Refusal::new(Reason::Unreadable("what was said before")));
        } else if check == Check::Nothing && !matches!(self.state, State::Open | State::Refused(_))
        {
            self.open(check);
        }
    }

    /// Whether what was asked for last may still be asked for, after a policy has changed and
    /// [`Inspector::require`]. Nobody who reads one direction knows whether the answer has ended, so
    /// a connection that is kept for a request to come goes with the last one.
    pub fn stands(&self, judge: &mut dyn Judge) -> bool {
        let Some(latest) = &self.latest else { return true };
        let Latest { host, method, target, overridden } = latest;
        match (self.check, target) {
            (Check::Nothing, _) => true,
            (Check::Name, _) => judge.name(host).is_allow(),
            (Check::Requests, None) => false,
            (Check::Requests, Some(target)) => {
                !overridden && judge.request(&Request { host, method, target }).is_allow()
            }
        }
    }

    fn step(&mut self, bytes: &[u8], judge: &mut dyn Judge) -> Result<Step, Refusal> {
        match &self.state {
            State::Open => Ok(Step::Forward(bytes.len())),
            State::Refused(refusal) => Err(refusal.clone()),
            State::First => self.first(within(bytes, Self::MAX_PENDING)),
            State::Tls => self.hello(within(bytes, Self::MAX_PENDING), judge),
            State::Head => self.head(within(bytes, http::MAX_HEAD), judge),
            State::Body(left) => {
                let len = at_most(bytes, *left);
                let left = left - len as u64;
                self.state = if left == 0 { self.after_body() } else { State::Body(left) };
                Ok(Step::Forward(len))
            }
            State::ChunkSize => {
                let read = http::chunk_size(bytes).map_err(malformed)?;
                let Some((len, size)) = read else { return Ok(Step::More) };
                self.state = if size == 0 { self.after_body() } else { State::Chunk(size) };
                Ok(Step::Forward(len))
            }
            State::Chunk(left) => {
                let len = at_most(bytes, *left);
                let left = left - len as u64;
                self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                Ok(Step::Forward(len))
            }
            State::ChunkEnd => {
                let read = http::chunk_end(bytes).map_err(malformed)?;
                let Some(len) = read else { return Ok(Step::More) };
                self.state = State::ChunkSize;
                Ok(Step::Forward(len))
            }
        }
    }

    fn first(&mut self, (bytes, full): (&[u8], bool)) -> Result<Step, Refusal> {
        let tls = tls::may_be_tls(bytes);
        if tls == Some(true) {
            self.state = State::Tls;
            return Ok(Step::Forward(0));
        }
        match http::first(bytes) {
            First::Unclear if full => Err(Refusal::new(Reason::TooLong)),
            _ if tls.is_none() => Ok(Step::More),
            First::Unclear => Ok(Step::More),
            First::Http => {
                self.state = State::Head;
                Ok(Step::Forward(0))
            }
            First::Http2 => Err(Refusal::new(Reason::Http2)),
            First::Other if self.check > Check::Name => {
                Err(Refusal::new(Reason::Unreadable("another protocol than HTTP")))
            }
            First::Other if matches!(self.port, 80 | 443) && !self.upgrade => {
                Err(Refusal::new(Reason::NotWeb(self.port)))
            }
            First::Other => {
                self.open(Check::Name);
                Ok(Step::Forward(0))
            }
        }
    }

    fn hello(
        &mut self,
        (bytes, full): (&[u8], bool),
        judge: &mut dyn Judge,
    ) -> Result<Step, Refusal> {
        let tls = |refusal: Refusal| refusal.answered(Answer::Tls, self.begun);
        let hello = match ClientHello::read(bytes) {
            Ok(Some(hello)) => hello,
            Ok(None) if full => return Err(tls(Refusal::new(Reason::TooLong))),
            Ok(None) => return Ok(Step::More),
            Err(_) => return Err(tls(malformed("a TLS hello that cannot be read"))),
        };
        let name = match &hello.name {
            None => return Err(tls(Refusal::new(Reason::Nameless("TLS")))),
            Some(Err(_)) => return Err(tls(Refusal::new(Reason::NotAName))),
            Some(Ok(name)) => name,
        };
        let refuse = |reason| Err(tls(Refusal::new(reason).named(name)));
        if hello.hidden {
            return refuse(Reason::Hidden);
        }
        if hello.alpn.iter().any(|protocol| protocol == b"dot") {
            return refuse(Reason::Dns);
        }
        match judge.name(name) {
            Verdict::Deny(reason) => refuse(Reason::Denied(reason)),
            Verdict::Allow { check, .. } if check.max(self.check) > Check::Name => {
                refuse(Reason::Unreadable("TLS"))
            }
            Verdict::Allow { .. } => {
                self.open(Check::Name);
                Ok(Step::Forward(0))
            }
        }
    }

    fn head(
        &mut self,
        (bytes, full): (&[u8], bool),
        judge: &mut dyn Judge,
    ) -> Result<Step, Refusal> {
        let http = |refusal: Refusal| refusal.answered(Answer::Http, self.begun);
        let end = http::end_of_head(bytes).map_err(|what| http(malformed(what)))?;
        let Some(bytes) = end.and_then(|end| bytes.get(..end)) else {
            return if full { Err(http(Refusal::new(Reason::TooLong))) } else { Ok(Step::More) };
        };
        let head = http::read_head(bytes).map_err(|what| http(malformed(what)))?;
        self.judge(&head, judge).map_err(|reason| http(Refusal::new(reason).about(&head)))?;
        self.latest = Latest::of(&head);
        self.upgrade = head.upgrade;
        if head.upgrade {
            self.passed = Check::Name;
        }
        self.state = match head.body {
            Body::Sized(0) => self.after_body(),
            Body::Sized(len) => State::Body(len),
            Body::Chunked => State::ChunkSize,
        };
        Ok(Step::Forward(head.len))
    }

    fn judge(&self, head: &Head<'_>, judge: &mut dyn Judge) -> Result<(), Reason> {
        let name = match &head.host {
            Named::Missing => return Err(Reason::Nameless("HTTP")),
            Named::Other => return Err(Reason::NotAName),
            Named::Host(name) => name,
        };
        if head.dns {
            return Err(Reason::Dns);
        }
        match judge.request(&head.request(name)) {
            Verdict::Deny(reason) => Err(Reason::Denied(reason)),
            Verdict::Allow { check, .. } if check.max(self.check) <= Check::Name => Ok(()),
            Verdict::Allow { .. } if head.upgrade => {
                Err(Reason::Unreadable("the protocol after an Upgrade"))
            }
            Verdict::Allow { .. } if head.overridden => {
                Err(Reason::Malformed("a field that asks for something else than the request"))
            }
            Verdict::Allow { .. } => Ok(()),
        }
    }

    fn after_body(&self) -> State {
        if self.upgrade { State::First } else { State::Head }
    }

    fn open(&mut self, passed: Check) {
        (self.state, self.passed) = (State::Open, passed);
    }
}

/// The first bytes, and whether there may be no more of them.
fn within(bytes: &[u8], max: usize) -> (&[u8], bool) {
    bytes.get(..max).map_or((bytes, false), |bytes| (bytes, true))
}

fn malformed(what: &'static str) -> Refusal {
    Refusal::new(Reason::Malformed(what))
}

fn at_most(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}
