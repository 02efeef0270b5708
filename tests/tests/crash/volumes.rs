//! Volumes, whose server is killed: the records never say that one is taken by what is not there,
//! and what was synced is in it.

use anyhow::{Result, ensure};
use pandastack_sandbox::fault::Point;
use pandastack_tests::{Client, Sandbox};
use serde_json::{Value, json};

use crate::lab::{Lab, unanswered};
use crate::steps::{Step, gone};

const NAME: &str = "data";

fn one() -> String {
    format!("/v1/volumes/{NAME}")
}

fn body() -> Value {
    json!({ "template": "base", "volumes": [{ "name": NAME }] })
}

/// It is there with what was written last, can be given to a new sandbox that writes, and is free
/// again.
fn whole(lab: &Lab, content: &str) -> Result<()> {
    let client = lab.client()?;
    let sandbox = client.create(&body())?;
    let found = sandbox.output(&format!("cat /volumes/{NAME}/file 2>/dev/null || echo none"))?;
    ensure!(found == format!("{content}\n"), "{found:?} and not {content:?}");
    write(&sandbox, content)?;
    ensure!(sandbox.delete()?.status == 204);
    lab.is_empty()
}

fn write(sandbox: &Sandbox, content: &str) -> Result<()> {
    sandbox.output(&format!("echo {content} > /volumes/{NAME}/file && sync")).map(drop)
}

fn listed(client: &Client) -> Result<usize> {
    Ok(client.get("/v1/volumes")?.json().as_array().map_or(0, Vec::len))
}

fn make_one(client: &Client) -> Result<()> {
    let answer = client.post("/v1/volumes", &json!({ "name": NAME }))?;
    ensure!(answer.status == 201, "{}", answer.text());
    Ok(())
}

/// There is the whole volume or none, and then one of its name can be made.
pub fn make(step: Step, lab: &mut Lab) -> Result<()> {
    step.each(|point| {
        let body = json!({ "name": NAME, "size_mb": 16 });
        let client =
            lab.strike(point, false, |client| unanswered(client.post("/v1/volumes", &body)))?;
        let published = point == Point::VolumePublished;
        ensure!(listed(&client)? == usize::from(published), "volumes");
        if !published {
            make_one(&client)?;
        }
        whole(lab, "none")?;
        ensure!(lab.client()?.delete(&one())?.status == 204);
        lab.is_empty()
    })
}

/// However far a create came, the volume is nobody's afterwards.
pub fn create(step: Step, lab: &mut Lab) -> Result<()> {
    make_one(&lab.client()?)?;
    let sandbox = lab.client()?.create(&body())?;
    write(&sandbox, "first")?;
    sandbox.delete()?;
    step.each(|point| {
        lab.strike(point, false, |client| unanswered(client.post("/v1/sandboxes", &body())))?;
        whole(lab, "first")
    })
}

/// However far a delete came, what the sandbox had synced is there, and the next one gets it.
pub fn release(step: Step, lab: &mut Lab) -> Result<()> {
    make_one(&lab.client()?)?;
    step.each(|point| {
        let sandbox = lab.client()?.create(&body())?;
        write(&sandbox, point.name())?;
        let path = sandbox.path("");
        let client = lab.strike(point, false, |client| unanswered(client.delete(&path)))?;
        gone(&client, &sandbox, &["deleted"])?;
        whole(lab, point.name())
    })
}

/// A volume that was hidden is gone, and another one of its name is another one.
pub fn delete(step: Step, lab: &mut Lab) -> Result<()> {
    step.each(|point| {
        make_one(&lab.client()?)?;
        let sandbox = lab.client()?.create(&body())?;
        write(&sandbox, "old")?;
        sandbox.delete()?;
        let client = lab.strike(point, false, |client| unanswered(client.delete(&one())))?;
        ensure!(client.get(&one())?.status == 404 && listed(&client)? == 0, "it is there");
        make_one(&client)?;
        whole(lab, "none")
    })
}
