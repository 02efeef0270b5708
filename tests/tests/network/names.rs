//! T20: a name that is not allowed is asked of nobody. Elsewhere sandboxes without a network could
//! still resolve names, and so talk to whoever answered for them.

use std::time::{Duration, Instant};

use anyhow::Result;
use pandastack_tests::deadline;
use pandastack_tests::lab::{A, AAAA, Manner};
use serde_json::json;

use crate::guest::Probe;
use crate::stage::{SITE_A, Stage};

#[test]
fn a_name_that_is_not_allowed_is_asked_of_nobody() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let plain = stage.plain()?;
    let named =
        stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }, { "host": "*.wild.lab" }] }))?;
    let foreign = [
        "other.lab",
        "secret.a.lab",
        "a.lab.other.lab",
        "xa.lab",
        "lab",
        "wild.lab",
        "xwild.lab",
        "wild.lab.evil.lab",
        "example.com",
    ];
    let mut probes: Vec<_> = foreign.iter().map(|name| Probe::resolve(name)).collect();
    probes.extend(foreign.iter().flat_map(|name| [Probe::dns(name, A), Probe::dns(name, AAAA)]));
    let outcomes = stage.closed(&named, &probes)?;
    // An answer comes at once: programs do not hang on a closed network.
    for outcome in &outcomes[foreign.len()..] {
        assert_eq!(outcome.value["rcode"], 3, "NXDOMAIN: {outcome:?}");
    }
    probes.extend([Probe::resolve("a.lab"), Probe::resolve("x.wild.lab")]);
    stage.closed(&plain, &probes)?;
    for (sandbox, name) in [(&named, "other.lab"), (&named, "secret.a.lab"), (&plain, "a.lab")] {
        stage.explains(sandbox, name, "no rule allows this name")?;
    }

    stage.lab.forget()?;
    let outcomes = stage.open(&named, &[Probe::resolve("a.lab"), Probe::resolve("A.wILD.lab")])?;
    assert_eq!(outcomes[0].text, SITE_A);
    let seen = stage.lab.seen()?;
    let mut names = seen.names();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["a.lab", "a.wild.lab"]);
    let outcomes = stage.open(&named, &[Probe::http(SITE_A, "a.lab", "/")])?;
    assert!(outcomes[0].text.contains("host=a.lab"), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_long_answer_is_told_whole_and_a_bad_one_is_not_told() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let zone = stage.lab.zone();
    let many: Vec<_> = (0..60).map(|n| format!("203.0.113.{}", 100 + n)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    zone.point("many.lab", &many);
    for (name, manner) in [
        ("short.lab", Manner::Truncated),
        ("late.lab", Manner::Late(Duration::from_millis(300))),
        ("id.lab", Manner::WrongId),
        ("question.lab", Manner::WrongQuestion),
        ("garbage.lab", Manner::Garbage),
        ("refused.lab", Manner::Refuses),
        ("silent.lab", Manner::Silent),
    ] {
        zone.point(name, &[SITE_A]);
        zone.behave(name, manner);
    }
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "*.lab" }] }))?;
    let bad = ["id.lab", "question.lab", "garbage.lab", "refused.lab", "silent.lab"];
    let asked = |name: &&str| Probe::resolve(name).with("timeout", 20);
    let begin = Instant::now();
    stage.refused(&sandbox, &bad.iter().map(asked).collect::<Vec<_>>())?;
    assert!(begin.elapsed() < deadline(Duration::from_secs(25)), "{:?}", begin.elapsed());
    let outcomes = stage.open(
        &sandbox,
        &["many.lab", "short.lab", "late.lab"].iter().map(asked).collect::<Vec<_>>(),
    )?;
    // As many as there is room for, and whoever was told of an address gets there.
    let told: Vec<_> = outcomes[0].text.split(' ').collect();
    assert!(told.len() >= 20, "{outcomes:?}");
    stage.open(&sandbox, &[Probe::http(told[told.len() - 1], "many.lab", "/")])?;
    Ok(())
}

#[test]
fn one_sandbox_knows_nothing_of_what_another_was_told() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let policy = json!({ "allow": [{ "host": "a.lab" }] });
    let (told, other) = (stage.sandbox(&policy)?, stage.sandbox(&policy)?);
    stage.open(&told, &[Probe::resolve("a.lab").alone(), Probe::http(SITE_A, "a.lab", "/")])?;
    // The same place and the same name, but nobody has told it that it is there.
    stage.closed(&other, &[Probe::http(SITE_A, "a.lab", "/")])?;
    stage.explains(&other, SITE_A, "no allowed name led to this address")?;
    stage.open(&other, &[Probe::resolve("a.lab").alone(), Probe::http(SITE_A, "a.lab", "/")])?;
    Ok(())
}
