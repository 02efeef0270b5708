//! `pandastack sandbox cp`, with a guest that wants out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::fake::Fake;
use crate::program::{Program, stderr};

struct Copy {
    fake: Fake,
    program: Program,
    host: tempfile::TempDir,
}

impl Copy {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let program = Program::of(fake.url());
        Self { fake, program, host: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.host.path().join(name)
    }

    /// Copies, and checks the exit status.
    async fn copy(&self, source: &str, destination: &str, status: i32) -> String {
        let output = self.program.run(&["sandbox", "cp", source, destination]).await;
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
        stderr(&output)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_goes_in_under_its_name_or_another() {
    let c = Copy::new().await;
    let file = c.path("data.csv");
    fs::write(&file, "1,2").unwrap();
    c.copy(file.to_str().unwrap(), "1b9d:/root/", 0).await;
    c.copy(file.to_str().unwrap(), "1b9d:/root/other name", 0).await;
    assert_eq!(c.fake.text("/root/data.csv").as_deref(), Some("1,2"));
    assert_eq!(c.fake.text("/root/other name").as_deref(), Some("1,2"));
}

#[tokio::test]
async fn a_directory_goes_in_with_its_programs_and_without_its_links() {
    let c = Copy::new().await;
    let project = c.path("project");
    fs::create_dir_all(project.join("src/empty")).unwrap();
    fs::write(project.join("src/main.py"), "x").unwrap();
    fs::write(project.join("run.sh"), "y").unwrap();
    fs::set_permissions(project.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(c.path("secret"), "s").unwrap();
    symlink(c.path("secret"), project.join("link")).unwrap();

    let words = c.copy(project.to_str().unwrap(), "1b9d:/work", 1).await;
    assert!(words.contains("left out") && words.contains("project/link"), "{words}");
    assert_eq!(c.fake.text("/work/src/main.py").as_deref(), Some("x"));
    assert_eq!(c.fake.text("/work/src/empty").as_deref(), Some(""));
    assert_eq!(c.fake.text("/work/link"), None);
    let marked = serde_json::json!(["chmod", "a+x", "--", "/work/run.sh"]);
    assert_eq!(c.fake.bodies()[0]["argv"], marked);
}

#[tokio::test]
async fn files_come_out_into_a_directory_or_under_a_name() {
    let c = Copy::new().await;
    c.fake.put("/root/plot.png", "-rw-r--r--", "image");
    c.copy("1b9d:/root/plot.png", c.host.path().to_str().unwrap(), 0).await;
    c.copy("1b9d:/root/plot.png", c.path("mine.png").to_str().unwrap(), 0).await;
    assert_eq!(fs::read_to_string(c.path("plot.png")).unwrap(), "image");
    assert_eq!(fs::read_to_string(c.path("mine.png")).unwrap(), "image");
    let words = c.copy("1b9d:/root/none", c.host.path().to_str().unwrap(), 125).await;
    assert!(words.contains("has no /root/none"), "{words}");
}

#[tokio::test]
async fn a_directory_comes_out_with_its_programs_and_without_its_links() {
    let c = Copy::new().await;
    c.fake.put("/out", "drwxr-xr-x", "");
    c.fake.put("/out/sub", "drwxr-xr-x", "");
    c.fake.put("/out/sub/tool", "-rwsr-xr-x", "tool");
    c.fake.put("/out/link", "lrwxrwxrwx", "");
    c.fake.put("/out/disk", "brw-rw----", "");
    c.copy("1b9d:/out", c.path("result").to_str().unwrap(), 1).await;
    assert_eq!(names(&c.path("result")), ["sub"]);
    let mode = fs::metadata(c.path("result/sub/tool")).unwrap().permissions().mode();
    assert_eq!(mode & 0o6100, 0o100, "executable, and never set-uid");
}

#[tokio::test]
async fn a_guest_cannot_write_outside() {
    for name in ["../escaped", "..", "a/../../escaped"] {
        let c = Copy::new().await;
        fs::create_dir(c.path("in")).unwrap();
        c.fake.put("/out", "drwxr-xr-x", "");
        c.fake.put(&format!("/out/{name}"), "-rw-r--r--", "evil");
        let words = c.copy("1b9d:/out", c.path("in").to_str().unwrap(), 125).await;
        assert!(words.contains("no file name"), "{name}: {words}");
        assert_eq!(names(c.host.path()), ["in"], "{name}");
    }
}

#[tokio::test]
async fn a_link_on_the_way_is_not_followed() {
    let c = Copy::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(c.path("out")).unwrap();
    symlink(outside.path(), c.path("out/sub")).unwrap();
    c.fake.put("/out", "drwxr-xr-x", "");
    c.fake.put("/out/sub", "drwxr-xr-x", "");
    c.fake.put("/out/sub/file", "-rw-r--r--", "evil");
    let words = c.copy("1b9d:/out", c.host.path().to_str().unwrap(), 125).await;
    assert!(words.contains("in the way"), "{words}");
    assert_eq!(names(outside.path()), [""; 0]);
}

#[tokio::test]
async fn one_side_is_in_a_sandbox() {
    let c = Copy::new().await;
    assert!(c.copy("a", "b", 125).await.contains("neither side"));
    assert!(c.copy("1b9d:/a", "1b9e:/b", 125).await.contains("both sides"));
}
