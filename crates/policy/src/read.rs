//! Reading a policy. The invariant: **what is read is what was meant, or it is refused.** No
//! field is ignored, none is read twice, no empty list stands for everything, and every error says
//! where it is and what to write.

use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};

use crate::cidr::CidrError;
use crate::host::HostError;
use crate::json::Json;
use crate::path::InvalidPath;
use crate::policy::{Bandwidth, Policy, Rule, Target};
use crate::port::{InvalidPorts, Ports, Protocol};

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        policy(&At { path: "egress".to_owned(), json: &json }).map_err(D::Error::custom)
    }
}

/// Why a policy is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
struct PolicyError {
    /// Such as `egress/allow/3/ports/0`.
    path: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("unknown field {0:?}; did you mean {1:?}?")]
    Similar(String, &'static str),
    #[error("unknown field {0:?}; the fields here are {1}")]
    Unknown(String, String),
    #[error("the field {0:?} is given twice")]
    Twice(&'static str),
    #[error("this must be {0}")]
    Shape(&'static str),
    #[error("this must be a number from {} to {}", .0.start(), .0.end())]
    Number(RangeInclusive<u64>),
    #[error("at most {0} entries")]
    Many(usize),
    #[error("at most {0} KiB for all rules together; wildcards and shorter paths take less")]
    Long(usize),
    #[error("{0}")]
    Rule(&'static str),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Cidr(#[from] CidrError),
    #[error(transparent)]
    Ports(#[from] InvalidPorts),
    #[error(transparent)]
    Path(#[from] InvalidPath),
}

type Read<T> = Result<T, PolicyError>;

/// A value and the way to it.
struct At<'a> {
    path: String,
    json: &'a Json,
}

impl<'a> At<'a> {
    fn fail<T>(&self, problem: impl Into<Problem>) -> Read<T> {
        Err(PolicyError { path: self.path.clone(), problem: problem.into() })
    }

    fn below(&self, step: impl std::fmt::Display, json: &'a Json) -> At<'a> {
        At { path: format!("{}/{step}", self.path), json }
    }

    /// The fields of an object, each in its place; none that is not known.
    fn fields<const N: usize>(&self, known: [&'static str; N]) -> Read<[Option<At<'a>>; N]> {
        let Json::Object(fields) = self.json else {
            return self.fail(Problem::Shape("an object"));
        };
        let mut found = [const { None }; N];
        for (name, json) in fields {
            let Some((slot, known)) = found.iter_mut().zip(known).find(|(_, own)| own == name)
            else {
                // What a stranger wrote is shown, but not all of it.
                let shown = name.chars().take(32).collect();
                let nearest = known.into_iter().min_by_key(|own| distance(own, name));
                return self.fail(match nearest.filter(|own| is_similar(own, name)) {
                    Some(own) => Problem::Similar(shown, own),
                    None => Problem::Unknown(shown, known.join(", ")),
                });
            };
            if slot.replace(self.below(known, json)).is_some() {
                return self.fail(Problem::Twice(known));
            }
        }
        Ok(found)
    }

    fn list<T>(&self, max: usize, each: impl Fn(&At<'a>) -> Read<T>) -> Read<Vec<T>> {
        match self.json {
            Json::List(list) if list.len() > max => self.fail(Problem::Many(max)),
            Json::List(list) => {
                list.iter().enumerate().map(|(i, json)| each(&self.below(i, json))).collect()
            }
            _ => self.fail(Problem::Shape("a list")),
        }
    }

    /// Entries of a rule. An empty list could be meant as nothing or as everything.
    fn entries<T>(&self, each: impl Fn(&At<'a>) -> Read<T>) -> Read<Vec<T>> {
        let list = self.list(Policy::MAX_ENTRIES, each)?;
        if list.is_empty() {
            return self.fail(Problem::Rule("name at least one, or leave the field out"));
        }
        Ok(list)
    }

    fn text(&self) -> Read<&'a str> {
        match self.json {
            Json::Text(text) => Ok(text),
            _ => self.fail(Problem::Shape("text")),
        }
    }

    fn parse<T: FromStr<Err: Into<Problem>>>(&self) -> Read<T> {
        self.text()?.parse().or_else(|error| self.fail(error))
    }

    fn number(&self, range: RangeInclusive<u64>) -> Read<u64> {
        match self.json {
            Json::Number(number) if range.contains(number) => Ok(*number),
            _ => self.fail(Problem::Number(range)),
        }
    }

    fn flag(&self) -> Read<bool> {
        match self.json {
            Json::Bool(flag) => Ok(*flag),
            _ => self.fail(Problem::Shape("true or false")),
        }
    }
}

fn policy(at: &At<'_>) -> Read<Policy> {
    match at.json {
        Json::Text(text) if text == "none" => return Ok(Policy::default()),
        Json::Object(_) => {}
        _ => return at.fail(Problem::Shape("\"none\" or an object with a list \"allow\"")),
    }
    let known = ["allow", "deny", "log", "bandwidth", "max_connections"];
    let [allow, deny, log, bandwidth, max_connections] = at.fields(known)?;
    let Some(allow) = allow else {
        // Somebody who only denies may expect the rest to be open.
        return at.fail(Problem::Rule("\"allow\" is missing; an empty list allows nothing"));
    };
    let limit = 1..=u64::from(Policy::MAX_CONNECTIONS);
    let policy = Policy {
        allow: allow.list(Policy::MAX_RULES, |at| rule(at, true))?,
        deny: match deny {
            Some(deny) => deny.list(Policy::MAX_RULES, |at| rule(at, false))?,
            None => Vec::new(),
        },
        log: log.map_or(Ok(true), |at| at.flag())?,
        bandwidth: bandwidth.map(|at| self::bandwidth(&at)).transpose()?,
        max_connections: max_connections
            .map(|at| at.number(limit))
            .transpose()?
            .and_then(|number| u32::try_from(number).ok()),
    };
    // Each list has its own limit; together they would still be too much for one message.
    match Length::of(&policy) {
        Some(len) if len <= Policy::MAX_LEN => Ok(policy),
        _ => at.fail(Problem::Long(Policy::MAX_LEN >> 10)),
    }
}

/// Counts the bytes of a policy in JSON instead of keeping them.
struct Length(usize);

impl Length {
    fn of(policy: &Policy) -> Option<usize> {
        let mut length = Self(0);
        serde_json::to_writer(&mut length, policy).ok().map(|()| length.0)
    }
}

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rule(at: &At<'_>, allows: bool) -> Read<Rule> {
    let [host, cidr, ports, methods, paths] =
        at.fields(["host", "cidr", "ports", "methods", "paths"])?;
    let on_requests = methods.is_some() || paths.is_some();
    let target = match (host, cidr) {
        (Some(host), None) => Target::Host(host.parse()?),
        (None, Some(cidr)) if !on_requests => Target::Cidr(cidr.parse()?),
        (None, Some(_)) => {
            return at.fail(Problem::Rule("methods and paths go with host, not with cidr"));
        }
        _ => return at.fail(Problem::Rule("a rule has either host or cidr")),
    };
    if on_requests && !allows {
        // Most requests are encrypted: that such a rule holds could not be promised.
        let advice = "deny has no methods and paths; allow those that are wanted instead";
        return at.fail(Problem::Rule(advice));
    }
    let by_name = allows && matches!(target, Target::Host(_));
    let one_port = |at: &At<'_>| {
        let ports = match at.json {
            Json::Number(number) => {
                u16::try_from(*number).map_err(|_| InvalidPorts).and_then(Ports::tcp)
            }
            Json::Text(text) => text.parse(),
            _ => Err(InvalidPorts),
        };
        let ports = ports.or_else(|error| at.fail(error))?;
        if by_name && ports.contains(Protocol::Udp, 443) {
            return at
                .fail(Problem::Rule("443/udp is QUIC, which hides its host: it needs a cidr"));
        }
        if on_requests && ports.protocol() == Protocol::Udp {
            return at.fail(Problem::Rule("methods and paths go with TCP"));
        }
        Ok(ports)
    };
    Ok(Rule {
        target,
        ports: ports.map_or(Ok(Vec::new()), |at| at.entries(one_port))?,
        methods: methods.map_or(Ok(Vec::new()), |at| at.entries(method))?,
        paths: paths.map_or(Ok(Vec::new()), |at| at.entries(At::parse))?,
    })
}

/// A method of HTTP, which are in upper case. What follows a CONNECT is not requests.
fn method(at: &At<'_>) -> Read<String> {
    let text = at.text()?;
    let plain = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    if matches!(text.len(), 1..=32) && text.bytes().all(plain) && text != "CONNECT" {
        return Ok(text.to_owned());
    }
    at.fail(Problem::Shape("a method in upper case, such as GET, and not CONNECT"))
}

fn bandwidth(at: &At<'_>) -> Read<Bandwidth> {
    let [up, down] = at.fields(["up_bytes_per_second", "down_bytes_per_second"])?;
    let rate =
        |at: Option<At<'_>>| at.map(|at| at.number(Bandwidth::MIN..=Bandwidth::MAX)).transpose();
    let limits = Bandwidth { up_bytes_per_second: rate(up)?, down_bytes_per_second: rate(down)? };
    if limits == Bandwidth::default() {
        return at.fail(Problem::Rule("up_bytes_per_second or down_bytes_per_second is missing"));
    }
    Ok(limits)
}

/// Whether a field that is not known was probably meant to be `known`: their letters differ in at
/// most two places, case aside.
pub fn is_similar(known: &str, name: &str) -> bool {
    distance(known, name) <= 2
}

/// How many letters a field is away from a known one, case aside: Levenshtein's distance.
fn distance(known: &str, name: &str) -> usize {
    if name.len() > 2 * known.len() {
        return usize::MAX; // far enough, and it bounds the work
    }
    let (known, name) = (known.as_bytes(), name.to_lowercase());
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (i, a) in name.bytes().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for (pair, b) in row.windows(2).zip(known) {
            if let [diagonal, above] = *pair {
                left = (diagonal + usize::from(a != *b)).min(above + 1).min(left + 1);
                next.push(left);
            }
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_policy_has_one_spelling() {
        for (text, canonical) in [
            (r#""none""#, r#""none""#),
            (r#"{"allow":[]}"#, r#""none""#),
            (r#"{"allow":[],"deny":[],"log":true}"#, r#""none""#),
            (r#"{"log":false,"allow":[]}"#, r#"{"allow":[],"log":false}"#),
            (
                r#"{"deny":[{"cidr":"::ffff:10.0.0.0/104"}],"allow":[{"ports":[443,"80/tcp","1-2/udp"],"host":"*.PyPI.org."}]}"#,
                r#"{"allow":[{"host":"*.pypi.org","ports":[443,80,"1-2/udp"]}],"deny":[{"cidr":"10.0.0.0/8"}]}"#,
            ),
            (
                r#"{"allow":[{"host":"a.test","methods":["GET"],"paths":["/x"]}],"max_connections":9,"bandwidth":{"down_bytes_per_second":1000}}"#,
                r#"{"allow":[{"host":"a.test","methods":["GET"],"paths":["/x"]}],"bandwidth":{"down_bytes_per_second":1000},"max_connections":9}"#,
            ),
        ] {
            let policy = read(text).unwrap();
            assert_eq!(serde_json::to_string(&policy).unwrap(), canonical);
            assert_eq!(read(canonical), Ok(policy));
        }
    }

    /// What is refused, and a part of what is said about it.
    const REFUSED: &str = r#"
        null                                  ▸ egress: this must be "none" or an object
        "None"                                ▸ egress: this must be "none" or an object
        []                                    ▸ egress: this must be "none" or an object
        {}                                    ▸ egress: "allow" is missing
        {"deny":[]}                           ▸ egress: "allow" is missing
        {"Allow":[]}                          ▸ egress: unknown field "Allow"; did you mean "allow"?
        {"allow":[],"denys":[]}               ▸ egress: unknown field "denys"; did you mean "deny"?
        {"allow":[],"maxConnections":1}       ▸ did you mean "max_connections"?
        {"allow":[],"mode":1}                 ▸ unknown field "mode"; the fields here are allow, deny, log,
        {"allow":[],"allow":[]}               ▸ egress: the field "allow" is given twice
        {"allow":null}                        ▸ egress/allow: this must be a list
        {"allow":["pypi.org"]}                ▸ egress/allow/0: this must be an object
        {"allow":[{}]}                        ▸ egress/allow/0: a rule has either host or cidr
        {"allow":[{"host":"a.b","cidr":"::/0"}]}               ▸ either host or cidr
        {"allow":[{"host":"a.b","post":[1]}]}                  ▸ egress/allow/0: unknown field "post"; did
        {"allow":[{"host":"a.b"},{"host":"1.1.1.1"}]}          ▸ egress/allow/1/host: this is an address
        {"allow":[{"host":["a.b"]}]}                           ▸ egress/allow/0/host: this must be text
        {"allow":[{"cidr":"1.1.1.1"}]}                         ▸ egress/allow/0/cidr: a network has a prefix
        {"allow":[{"host":"a.b","ports":[]}]}                  ▸ egress/allow/0/ports: name at least one
        {"allow":[{"host":"a.b","ports":[1,0]}]}               ▸ egress/allow/0/ports/1: a port is 1 to 65535
        {"allow":[{"host":"a.b","ports":[65979]}]}             ▸ egress/allow/0/ports/0: a port is
        {"allow":[{"host":"a.b","ports":[443.0]}]}             ▸ egress/allow/0/ports/0: a port is
        {"allow":[{"host":"a.b","ports":["4-500/udp"]}]}       ▸ egress/allow/0/ports/0: 443/udp is QUIC
        {"allow":[{"host":"a.b","ports":["5/udp"],"paths":["/"]}]} ▸ go with TCP
        {"allow":[{"host":"a.b","methods":["get"]}]}           ▸ methods/0: this must be a method in upper
        {"allow":[{"host":"a.b","methods":["CONNECT"]}]}       ▸ and not CONNECT
        {"allow":[{"host":"a.b","paths":["/a/../b"]}]}         ▸ egress/allow/0/paths/0: a path starts with
        {"allow":[{"host":"a.b","paths":[]}]}                  ▸ egress/allow/0/paths: name at least one
        {"allow":[{"cidr":"::/0","paths":["/"]}]}              ▸ methods and paths go with host
        {"allow":[],"deny":[{"host":"a.b","paths":["/"]}]}     ▸ egress/deny/0: deny has no methods
        {"allow":[],"log":1}                                   ▸ egress/log: this must be true or false
        {"allow":[],"max_connections":0}                       ▸ egress/max_connections: this must be a number
        {"allow":[],"max_connections":-1}                      ▸ a number from 1 to 65536
        {"allow":[],"bandwidth":{}}                            ▸ egress/bandwidth: up_bytes_per_second or
        {"allow":[],"bandwidth":{"up_bytes_per_second":999}}   ▸ second: this must be a number from 1000 to
        {"allow":[[[[[[[[[]]]]]]]]]}                           ▸ egress is nested too deeply
    "#;

    #[test]
    fn errors_say_where_and_what() {
        for (text, error) in REFUSED.lines().filter_map(|line| line.split_once('▸')) {
            let got = read(text.trim()).unwrap_err();
            assert!(got.contains(error.trim()), "{text}: {got}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        let rules =
            |count| format!(r#"{{"allow":[{}]}}"#, vec![r#"{"host":"a.test"}"#; count].join(","));
        assert!(read(&rules(256)).is_ok());
        assert!(read(&rules(257)).unwrap_err().contains("egress/allow: at most 256 entries"));
        assert!(read(&rules(1025)).unwrap_err().contains("a list that is too long"));
        let ports = |count| {
            format!(r#"{{"allow":[{{"host":"a.test","ports":[{}]}}]}}"#, vec!["1"; count].join(","))
        };
        assert!(read(&ports(64)).is_ok());
        assert!(read(&ports(65)).unwrap_err().contains("egress/allow/0/ports: at most 64 entries"));
    }

    #[test]
    fn a_policy_has_a_length() {
        // With a last path of so many bytes.
        let with = |len: usize| {
            let path = |len: usize| format!("\"/{}\"", "a".repeat(len - 1));
            let paths = [vec![path(1024); 63], vec![path(len)]].concat().join(",");
            format!(r#"{{"allow":[{{"host":"a.test","paths":[{paths}]}}]}}"#)
        };
        let rest = Policy::MAX_LEN - with(1).len();
        let longest = with(1 + rest);
        assert_eq!((longest.len(), read(&longest).is_ok()), (Policy::MAX_LEN, true));
        // Spaces do not count: the one spelling does.
        assert!(read(&longest.replace(',', ", ")).is_ok());
        let error = read(&with(2 + rest)).unwrap_err();
        assert!(error.contains("egress: at most 64 KiB for all rules together"), "{error}");
    }

    #[test]
    fn fields_that_are_near() {
        for (known, name, letters) in [
            ("allow", "ALLOW", 0),
            ("allow", "alow", 1),
            ("allow", "allowed", 2),
            ("deny", "policy", 5),
            ("log", "", 3),
            ("log", "logging", usize::MAX),
        ] {
            assert_eq!(distance(known, name), letters, "{name}");
        }
    }
}
