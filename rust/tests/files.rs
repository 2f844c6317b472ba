//! Names from untrusted text, links, and files that appear whole or not at all.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::fs::symlink;

use lingconv_core::catalog::Catalog;
use lingconv_core::error::Kind;
use lingconv_core::io::root::check_name;
use lingconv_core::io::writer::Found;
use lingconv_core::io::{AlignedBuf, Mode, Part, PartWriter, Root, SourceFile};
use tempfile::tempdir;

#[test]
fn names_that_could_leave_the_folder_are_refused() {
    for name in [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        ".",
        "a//b",
        "a/",
        "a\\b",
        "\\\\host\\share",
        "C:",
        "C:a",
        "c:/a",
        "a\0b",
        "a/./b",
    ] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    for name in ["a", "a/b.safetensors", "..a", "a..", "model-00001-of-00002.safetensors", "ü"] {
        assert!(check_name(name).is_ok(), "{name:?}");
    }
}

#[test]
fn links_may_not_leave_the_folder_but_for_the_hub_caches_own() {
    let cache = tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("1234"), "blob").unwrap();
    std::fs::write(cache.path().join("secret"), "secret").unwrap();
    symlink("../../blobs/1234", snapshot.join("good")).unwrap();
    symlink("../../secret", snapshot.join("bad")).unwrap();
    symlink("/etc/hostname", snapshot.join("absolute")).unwrap();
    symlink("loop", snapshot.join("loop")).unwrap();
    let root = Root::open(&snapshot).unwrap();
    assert_eq!(root.read("good", 10).unwrap().unwrap(), b"blob");
    for name in ["bad", "absolute", "loop"] {
        assert!(root.read(name, 10).is_err(), "{name}");
    }
    assert_eq!(root.file("bad").unwrap_err().kind, Kind::Invalid);
    assert!(root.read("absent", 10).unwrap().is_none());
}

#[test]
fn a_pipe_in_place_of_a_shard_is_refused_without_waiting() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("model.safetensors");
    // Not by a command: its process would hold the locks of other tests for a moment.
    let private = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, private, 0).unwrap();
    assert_eq!(Catalog::open(folder.path()).unwrap_err().kind, Kind::Invalid);
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

#[test]
fn a_file_is_written_whole_at_any_size_and_continued_at_any_point() {
    let folder = tempdir().unwrap();
    for (n, length) in [0usize, 1, 4095, 4096, 4097, 70_000, 1_000_003].into_iter().enumerate() {
        let bytes = pattern(length);
        for mode in [Mode::Direct, Mode::Buffered] {
            for (m, cut) in [0, length / 3, length / 2, length].into_iter().enumerate() {
                let path = folder.path().join(format!("{n}-{mode:?}-{m}"));
                let mut writer = PartWriter::create(&path, length as u64, mode, 16_384).unwrap();
                writer.write(&bytes[..cut]).unwrap();
                writer.sync_point().unwrap();
                writer.write(&bytes[cut..]).unwrap();
                drop(writer);
                assert!(!path.exists());
                let Found::Held(part) = Part::find(&path).unwrap() else { panic!() };
                let mut writer =
                    PartWriter::new(part, length as u64, mode, 16_384, cut as u64).unwrap();
                writer.write(&bytes[cut..]).unwrap();
                assert!(writer.write(&[0]).is_err());
                writer.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{length} {mode:?} {cut}");
            }
        }
    }
}

#[test]
fn reads_are_exact_in_every_mode_and_a_short_file_is_an_error() {
    let folder = tempdir().unwrap();
    let bytes = pattern(100_003);
    std::fs::write(folder.path().join("f"), &bytes).unwrap();
    let root = Root::open(folder.path()).unwrap();
    for mode in [Mode::Auto, Mode::Direct, Mode::Buffered] {
        let file = SourceFile::open(&root, "f", mode).unwrap();
        let mut buffer = AlignedBuf::default();
        for (offset, length) in [(0, 1), (0, 100_003), (5, 4096), (4096, 4096), (99_999, 4), (7, 0)]
        {
            let range = file.read(&mut buffer, offset, length).unwrap();
            assert_eq!(&buffer.bytes()[range], &bytes[offset as usize..offset as usize + length]);
        }
        let error = file.read(&mut buffer, 100_000, 4).unwrap_err();
        assert_eq!(error.kind, Kind::Io);
        assert!(error.message.contains("1 bytes early"), "{error}");
    }
}

#[test]
fn two_writers_of_one_file_do_not_meet() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("f");
    let _first = PartWriter::create(&path, 10, Mode::Buffered, 4096).unwrap();
    let second = PartWriter::create(&path, 10, Mode::Buffered, 4096).unwrap_err();
    assert_eq!(second.kind, Kind::Foreign);
}

#[test]
fn a_file_begun_anew_is_another_file_and_only_its_own_gets_the_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("f");
    let mut first = PartWriter::create(&path, 3, Mode::Buffered, 4096).unwrap();
    first.write(b"one").unwrap();
    // As a process does that cannot see the lock of the first.
    std::fs::remove_file(folder.path().join("f.part")).unwrap();
    let mut second = PartWriter::create(&path, 3, Mode::Buffered, 4096).unwrap();
    second.write(b"two").unwrap();
    assert_eq!(first.finish().unwrap_err().kind, Kind::Foreign);
    second.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
}

#[test]
fn what_is_no_file_is_not_taken_for_a_part() {
    let folder = tempdir().unwrap();
    let (path, part) = (folder.path().join("f"), folder.path().join("f.part"));
    std::fs::write(folder.path().join("victim"), "mine").unwrap();
    symlink(folder.path().join("victim"), &part).unwrap();
    assert_eq!(Part::find(&path).unwrap_err().kind, Kind::Foreign);
    std::fs::remove_file(&part).unwrap();
    std::fs::create_dir(&part).unwrap();
    assert_eq!(Part::find(&path).unwrap_err().kind, Kind::Foreign);
    assert_eq!(std::fs::read(folder.path().join("victim")).unwrap(), b"mine");
}

/// 316 is 0x13C, and 0x3C is `<`.
#[test]
fn a_length_that_begins_like_a_page_is_none() {
    let folder = tempdir().unwrap();
    let write = |bytes: &[u8]| {
        std::fs::write(folder.path().join("a.safetensors"), bytes).unwrap();
        Catalog::open(folder.path())
    };
    let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let mut bytes = 316u64.to_le_bytes().to_vec();
    bytes.extend(format!("{json:316}").bytes());
    bytes.push(7);
    assert_eq!(write(&bytes).unwrap().tensors.len(), 1);
    for (text, what) in [
        ("<!DOCTYPE html><html></html>", "a web page"),
        ("<html><body>not found</body></html>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        ("version 2 of a text that is no pointer", "above the limit"),
    ] {
        let error = write(text.as_bytes()).unwrap_err();
        assert!(error.message.contains(what), "{text}: {error}");
    }
}
