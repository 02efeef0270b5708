//! A server in a laboratory, and both sides of every assertion.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::lab::{Lab, Seen};
use pandastack_tests::{Answer, Client, Options, Sandbox, Server, deadline, seconds, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guest::{Outcome, Probe, attempt};

/// Site A of the fake internet.
pub const SITE_A: &str = "203.0.113.10";
/// Site B.
pub const SITE_B: &str = "203.0.113.11";
/// A place that only cidrs speak of.
pub const PLACE: &str = "198.51.100.7";
/// Site A by IPv6.
pub const SITE_A6: &str = "2001:db8:1::10";

/// Every door open that can be opened by a policy.
pub fn everything() -> Value {
    json!({ "allow": [
        { "host": "*", "ports": ["1-65535"] },
        { "cidr": "0.0.0.0/0", "ports": ["1-65535", "1-65535/udp"] },
        { "cidr": "::/0", "ports": ["1-65535", "1-65535/udp"] },
    ] })
}

/// A laboratory with a server. Fields go in this order.
pub struct Stage {
    pub client: Client,
    pub server: Server,
    /// The data directory of a server that was killed.
    own: Option<TempDir>,
    pub lab: Lab,
}

impl Stage {
    /// A server that restores each sandbox, which is the quickest to start.
    pub fn new() -> Result<Option<Self>> {
        Self::with(&[], Options::default())
    }

    /// A server with more arguments and options.
    pub fn with(args: &[&str], mut options: Options) -> Result<Option<Self>> {
        let Some(lab) = Lab::start()? else { return Ok(None) };
        let zone = lab.zone();
        zone.point("a.lab", &[SITE_A]);
        zone.point("b.lab", &[SITE_B]);
        zone.point("six.lab", &[SITE_A6]);
        zone.point("both.lab", &[SITE_A, SITE_A6]);
        // Whoever is asked for any other name would tell.
        zone.point("*", &["203.0.113.99"]);
        options.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        let server = lab.serve(options)?;
        let client = server.client();
        Ok(Some(Self { client, server, own: None, lab }))
    }

    /// A server that forks sandboxes of `base`, once it does. Zygotes of other templates, which take
    /// longer, are not waited for.
    pub fn forking() -> Result<Option<Self>> {
        let options = Options { fork: true, ..Options::default() };
        let Some(stage) = Self::with(&["--max-sandboxes", "64"], options)? else { return Ok(None) };
        stage.wait_for_forks()?;
        Ok(Some(stage))
    }

    fn wait_for_forks(&self) -> Result<()> {
        let forks = || {
            let made = self.plain().and_then(|sandbox| {
                sandbox.delete()?;
                Ok(sandbox.object["boot_mode"] == "fork")
            });
            // Who makes sandboxes all the time delays what is waited for.
            made.unwrap_or(false) || {
                sleep(deadline(Duration::from_secs(1)));
                false
            }
        };
        ensure!(wait_until(Duration::from_secs(120), forks), "no forks: {}", self.stats()?);
        Ok(())
    }

    fn stats(&self) -> Result<String> {
        Ok(self.client.get("/v1/stats")?.text())
    }

    /// Kills the server and starts it again on the same data, with forks.
    pub fn restart(self) -> Result<Self> {
        let stage = self.next(Options { fork: true, ..Options::default() })?;
        stage.wait_for_forks()?;
        Ok(stage)
    }

    /// Kills the server and starts another one on the same data.
    pub fn next(self, options: Options) -> Result<Self> {
        let Self { server, lab, own, .. } = self;
        let (data, first) = server.kill()?;
        let server = lab.serve(Options { data: Some(data), ..options })?;
        Ok(Self { client: server.client(), server, own: own.or(first), lab })
    }

    /// A sandbox under a policy.
    pub fn sandbox(&self, egress: &Value) -> Result<Sandbox> {
        self.client.create(&json!({
            "template": "base", "ttl_seconds": seconds(600), "egress": egress,
        }))
    }

    /// A sandbox as it comes.
    pub fn plain(&self) -> Result<Sandbox> {
        self.client.base()
    }

    /// Replaces a policy, which must be taken.
    pub fn set(&self, sandbox: &Sandbox, egress: &Value) -> Result<()> {
        let answer = self.try_set(sandbox, egress)?;
        ensure!(answer.status == 200, "{egress}: {} {}", answer.status, answer.text());
        Ok(())
    }

    /// Replaces a policy; any answer.
    pub fn try_set(&self, sandbox: &Sandbox, egress: &Value) -> Result<Answer> {
        let body = egress.to_string();
        self.client.send(
            "PUT",
            &sandbox.path("/egress"),
            Some(("application/json", body.as_bytes())),
        )
    }

    /// Makes attempts.
    pub fn attempt(&self, sandbox: &Sandbox, probes: &[Probe]) -> Result<Vec<Outcome>> {
        attempt(&self.client, sandbox, probes)
    }

    /// Makes attempts that must work; what came of them.
    pub fn open(&self, sandbox: &Sandbox, probes: &[Probe]) -> Result<Vec<Outcome>> {
        let probes: Vec<_> = probes.iter().cloned().map(Probe::patient).collect();
        let outcomes = self.attempt(sandbox, &probes)?;
        let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
        if !failed.is_empty() {
            let log = self.log(sandbox).unwrap_or_default();
            let log = log.iter().rev().take(30).map(|line| format!("  {line}\n"));
            let log = log.collect::<String>();
            let seen = self.lab.seen()?;
            let (names, packets) = (seen.names(), seen.packets.len());
            bail!("these must work: {failed:?}\nasked: {names:?}, {packets} packets\n{log}");
        }
        Ok(outcomes)
    }

    /// Makes attempts of which none may work and nothing may leave the host; what came of them.
    pub fn closed(&self, sandbox: &Sandbox, probes: &[Probe]) -> Result<Vec<Outcome>> {
        self.lab.forget()?;
        let outcomes = self.refused(sandbox, probes)?;
        let seen = self.lab.seen()?;
        nothing(&seen).with_context(|| format!("after {probes:?}"))?;
        Ok(outcomes)
    }

    /// Makes attempts at addresses, of which the first must work and nothing of the others may
    /// leave the host.
    pub fn split(
        &self,
        sandbox: &Sandbox,
        probe: impl Fn(&str) -> Probe,
        (inside, outside): (&[&str], &[&str]),
    ) -> Result<()> {
        self.lab.forget()?;
        let patient = inside.iter().map(|address| probe(address).patient());
        let probes: Vec<_> = patient.chain(outside.iter().map(|address| probe(address))).collect();
        let outcomes = self.attempt(sandbox, &probes)?;
        let (open, shut) = outcomes.split_at(inside.len());
        ensure!(open.iter().all(|outcome| outcome.ok), "these must work: {open:?}");
        ensure!(!shut.iter().any(|outcome| outcome.ok), "these must not work: {shut:?}");
        let seen = self.lab.seen()?;
        let inside: Vec<IpAddr> =
            inside.iter().filter_map(|address| address.parse().ok()).collect();
        let stray = seen.packets.iter().find(|p| p.to.is_none_or(|to| !inside.contains(&to)));
        ensure!(stray.is_none(), "this left the host: {stray:?}");
        Ok(())
    }

    /// Makes attempts of which none may work, whatever is seen of them.
    pub fn refused(&self, sandbox: &Sandbox, probes: &[Probe]) -> Result<Vec<Outcome>> {
        let outcomes = self.attempt(sandbox, probes)?;
        let worked: Vec<_> = outcomes.iter().filter(|outcome| outcome.ok).collect();
        ensure!(worked.is_empty(), "these must not work: {worked:?}");
        Ok(outcomes)
    }

    /// The egress log, oldest line first.
    pub fn log(&self, sandbox: &Sandbox) -> Result<Vec<Value>> {
        let answer = self.client.get(&sandbox.path("/egress/log"))?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        let object = answer.json();
        let entries = object.as_array().or_else(|| object["entries"].as_array());
        Ok(entries.context("a list of entries")?.clone())
    }

    /// Whether the egress log has a refusal about a name or an address, with these words.
    pub fn explains(&self, sandbox: &Sandbox, about: &str, words: &str) -> Result<()> {
        let log = self.log(sandbox)?;
        let explained = log.iter().any(|line| {
            line["verdict"] == "deny"
                && (line["name"] == about || line["address"] == about)
                && line["reason"].as_str().is_some_and(|reason| reason.contains(words))
        });
        let log = log.iter().map(|line| format!("  {line}\n")).collect::<String>();
        ensure!(explained, "no line says {words:?} about {about:?}:\n{log}");
        Ok(())
    }
}

/// Nothing left the host.
pub fn nothing(seen: &Seen) -> Result<()> {
    ensure!(seen.packets.is_empty(), "these left the host: {:?}", seen.packets);
    ensure!(seen.queries.is_empty(), "these were asked: {:?}", seen.names());
    ensure!(seen.datagrams.is_empty(), "these were received: {:?}", seen.datagrams);
    Ok(())
}
