use std::os::unix::fs::{FileExt, PermissionsExt};

use proptest::prelude::*;

use super::*;

fn size() -> Size {
    Size::new(1, 512, 2048).unwrap()
}

/// A bake with files of every kind.
fn bake() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [STATE, DISK, "layer-0", DIFF, WORKING_SET] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let memory = File::create(dir.path().join(MEMORY)).unwrap();
    memory.set_len(16 << 20).unwrap();
    memory.write_all_at(b"guest", 5 << 20).unwrap();
    // Not the engine's: whoever keeps bakes has files of its own.
    fs::write(dir.path().join("manifest.json"), "{}").unwrap();
    Manifest::new("monitor", "processor", size()).complete(dir.path()).unwrap();
    dir
}

/// What `load` says after a change.
fn after(change: impl FnOnce(&Path)) -> Result<Manifest, EngineError> {
    let dir = bake();
    change(dir.path());
    Manifest::load(dir.path())
}

/// Replaces a file, which is read-only.
fn put(dir: &Path, name: &str, content: &[u8]) {
    let _ = fs::remove_file(dir.join(name));
    fs::write(dir.join(name), content).unwrap();
}

fn edit(dir: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
    assert!(text.contains(from), "{text}");
    put(dir, MANIFEST, text.replacen(from, to, 1).as_bytes());
}

#[test]
fn a_bake_is_what_its_manifest_says() {
    let dir = bake();
    let manifest = Manifest::load(dir.path()).unwrap();
    assert_eq!(manifest.files.len(), 6);
    assert_eq!(manifest.files[MEMORY].length, 16 << 20);
    assert_eq!((manifest.monitor.as_str(), manifest.size), ("monitor", size()));
    verify(dir.path()).unwrap();
    for name in manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, READ_ONLY, "{name}");
    }
}

#[test]
fn a_file_that_is_missing_truncated_grown_or_foreign_is_named() {
    let expect = |change: &dyn Fn(&Path), file: &str, why: &str| match after(|dir| change(dir)) {
        Err(EngineError::Damaged { file: found, why: said }) => {
            assert_eq!(found, file);
            assert!(said.contains(why), "{said}");
        }
        other => panic!("{file}: {other:?}"),
    };
    for name in [MEMORY, STATE, DIFF, DISK, "layer-0", WORKING_SET] {
        expect(&|dir| fs::remove_file(dir.join(name)).unwrap(), name, "missing");
        expect(&|dir| put(dir, name, b""), name, "0 bytes long");
        let longer = vec![1; (16 << 20) + 1];
        expect(&|dir| put(dir, name, &longer), name, "bytes long");
    }
    expect(&|dir| put(dir, "layer-1", b"x"), "layer-1", "another bake");
    expect(&|dir| fs::remove_file(dir.join(MANIFEST)).unwrap(), MANIFEST, "missing");
    expect(&|dir| put(dir, MANIFEST, b""), MANIFEST, "no JSON");
    expect(&|dir| put(dir, MANIFEST, &vec![b' '; 1 << 20]), MANIFEST, "too long");
    let link = |dir: &Path| {
        fs::remove_file(dir.join(STATE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join(STATE)).unwrap();
    };
    expect(&link, STATE, "no file");
}

#[test]
fn a_manifest_that_was_changed_or_is_of_another_version_is_refused() {
    let why = |from: &str, to: &str| match after(|dir| edit(dir, from, to)) {
        Err(EngineError::Damaged { file, why }) if file == MANIFEST => why,
        other => panic!("{from} → {to}: {other:?}"),
    };
    assert!(why("\"format\": 1", "\"format\": 2").contains("format 2, not 1"));
    assert!(why("\"format\": 1", "\"formed\": 1").contains("no format"));
    assert!(why("\"kvm\"", "\"qemu\"").contains("\"qemu\""));
    for (from, to) in [
        ("\"cpu\": 1", "\"cpu\": 2"),
        ("\"memory_mb\": 512", "\"memory_mb\": 128"),
        ("\"monitor\"", "\"mimicker\""),
        ("\"length\": 5", "\"length\": 6"),
        ("\"state\"", "\"stage\""),
        ("{", "{\"more\": 1,"),
    ] {
        why(from, to);
    }
}

#[test]
fn a_change_that_keeps_the_length_is_found_by_reading() {
    for name in [MEMORY, STATE, DIFF, DISK, "layer-0", WORKING_SET] {
        let dir = bake();
        let mut bytes = fs::read(dir.path().join(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        put(dir.path(), name, &bytes);
        let manifest = Manifest::load(dir.path()).unwrap();
        let file = files::open(&dir.path().join(name)).unwrap();
        for found in [manifest.check(name, &file), verify(dir.path())] {
            assert!(
                matches!(&found, Err(EngineError::Damaged { file, .. }) if file == name),
                "{name}: {found:?}"
            );
        }
    }
}

#[test]
fn what_was_hashed_before_is_not_hashed_again() {
    let dir = bake();
    let mut manifest = Manifest::load(dir.path()).unwrap();
    fs::remove_file(dir.path().join(WORKING_SET)).unwrap();
    put(dir.path(), "layer-1", b"new");
    // A stale hash would stay: nobody looks at the file.
    put(dir.path(), "layer-0", b"later!!");
    manifest.complete(dir.path()).unwrap();
    let found = Manifest::load(dir.path()).unwrap();
    assert!(!found.files.contains_key(WORKING_SET) && found.files.contains_key("layer-1"));
    assert!(verify(dir.path()).is_err());
}

proptest! {
    /// Whatever stands there: an error, or the very manifest that was written.
    #[test]
    fn a_damaged_manifest_is_never_believed(at in any::<prop::sample::Index>(), byte: u8) {
        let dir = bake();
        let right = Manifest::load(dir.path()).unwrap();
        let mut text = fs::read(dir.path().join(MANIFEST)).unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        put(dir.path(), MANIFEST, &text);
        if let Ok(found) = Manifest::load(dir.path()) {
            prop_assert_eq!(found, right);
        }
    }
}
