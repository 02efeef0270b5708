//! What sandboxes leave where nothing of them may be left: in the data directory and in the records.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Client;

/// Events that are read at once.
const PAGE: usize = 500;

/// The names in a directory; none if it is not there.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The last that the journal has of every sandbox, known to its client or not, must be its end. How
/// many there were.
pub fn every_story_ends(client: &Client) -> Result<usize> {
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = client.get(&format!("/v1/events?after={after}&tail={PAGE}"))?.json();
        let events = page["events"].as_array().with_context(|| format!("no events: {page}"))?;
        if events.is_empty() {
            break;
        }
        // Those of the server itself are about no sandbox.
        for event in events.iter().filter(|event| event["sandbox_id"].is_string()) {
            last.insert(event["sandbox_id"].to_string(), event.clone());
        }
        after = page["next"].as_u64().context("a page has a next one")?;
    }
    let open: Vec<_> = last.values().filter(|event| event["type"] != "sandbox.deleted").collect();
    ensure!(open.is_empty(), "records of sandboxes that are gone: {open:?}");
    Ok(last.len())
}

/// The journal's last word about a sandbox must be its end, for one of these reasons.
pub fn ended_for(client: &Client, id: &str, reasons: &[&str]) -> Result<()> {
    let events = client.get(&format!("/v1/sandboxes/{id}/events"))?.json();
    let last = events["events"].as_array().and_then(|events| events.last());
    let last = last.with_context(|| format!("no events: {events}"))?;
    let reason = last["payload"]["reason"].as_str().unwrap_or_default();
    ensure!(
        last["type"] == "sandbox.deleted" && reasons.contains(&reason),
        "it did not end for {reasons:?}: {events}"
    );
    Ok(())
}
