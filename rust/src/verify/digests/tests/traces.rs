//! What downloads and runs leave in a folder.

use super::*;

#[test]
fn a_folder_without_traces_says_nothing() {
    let folder = folder(&[("config.json", "{}"), ("SHA256SUMS", "# empty\n")]);
    assert!(found(folder.path()).is_empty());
}

#[test]
fn records_of_a_download_without_a_listing() {
    let folder = folder(&[
        (".cache/huggingface/download/config.json.metadata", &metadata(COMMIT, &sha1("c"))),
        (".cache/huggingface/download/sub/m.bin.metadata", &metadata(COMMIT, &sha256("m"))),
        (".cache/huggingface/download/s3.bin.metadata", &metadata(COMMIT, "abc-3")),
        (".cache/huggingface/download/torn.bin.metadata", ""),
        (".cache/huggingface/download/config.json.lock", ""),
    ]);
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.kind, truth.lists_everything), (Kind::HubLocal, false));
    assert_eq!(
        (truth.commit.as_deref(), &*truth.commits),
        (Some(COMMIT), &[COMMIT.to_owned()][..])
    );
    is(&truth, "config.json", Algorithm::GitBlobSha1, &sha1("c"));
    is(&truth, "sub/m.bin", Algorithm::Sha256, &sha256("m"));
    assert!(truth.files["s3.bin"].digests.is_empty());
    assert_eq!((truth.files.len(), truth.notes.len(), truth.mixed.len()), (3, 3, 0));
}

#[test]
fn a_listing_beside_the_records_is_whole() {
    let files = json!({"config.json": {"size": 7, "blob_id": sha1("c")},
                       "README.md": {"size": 1, "blob_id": sha1("r")}});
    let folder = folder(&[
        (".cache/huggingface/download/config.json.metadata", &metadata(COMMIT, &sha1("c"))),
        (&format!(".cache/huggingface/trees/{COMMIT}.json"), &stored(&files)),
        (&format!(".cache/huggingface/trees/{OTHER}.json"), "{torn"),
        (".cache/huggingface/trees/tmp1234.tmp", "x"),
    ]);
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.lists_everything, truth.files.len()), (true, 2));
    assert_eq!((truth.files["config.json"].size, truth.notes.len()), (Some(7), 1));
}

/// Two commits that differ in the second shard; the config was downloaded again at the later one.
fn two_commits(second: &str, listings: bool) -> tempfile::TempDir {
    let shard = |seed: &str| json!({"size": 9, "blob_id": sha1("p"), "lfs_sha256": sha256(seed)});
    let tree = |config: &str, two: &str| {
        stored(&json!({"config.json": {"size": 7, "blob_id": sha1(config)},
                       "1.safetensors": shard("1"), "2.safetensors": shard(two)}))
    };
    let folder = folder(&[
        ("1.safetensors", ""),
        ("2.safetensors", ""),
        ("config.json", ""),
        (".cache/huggingface/download/config.json.metadata", &metadata(OTHER, &sha1("new"))),
        (".cache/huggingface/download/1.safetensors.metadata", &metadata(COMMIT, &sha256("1"))),
        (".cache/huggingface/download/2.safetensors.metadata", &metadata(COMMIT, &sha256("2"))),
    ]);
    if listings {
        let trees = folder.path().join(".cache/huggingface/trees");
        put(&trees, &format!("{COMMIT}.json"), &tree("old", "2"));
        put(&trees, &format!("{OTHER}.json"), &tree("new", second));
    }
    folder
}

#[test]
fn equal_files_of_two_commits_are_not_mixed() {
    let folder = two_commits("2", true);
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.commit.as_deref(), &*truth.mixed), (Some(OTHER), &[][..]));
    assert_eq!(truth.commits, [OTHER]);
}

#[test]
fn different_files_of_two_commits_are_mixed() {
    let folder = two_commits("changed", true);
    let [truth] = found(folder.path()).try_into().unwrap();
    let config = ("config.json".to_owned(), OTHER.to_owned());
    assert_eq!((truth.commit.as_deref(), truth.mixed), (Some(COMMIT), vec![config]));
    assert_eq!(truth.commits, [COMMIT, OTHER]);
}

#[test]
fn without_listings_every_other_commit_is_mixed() {
    let folder = two_commits("", false);
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.commit.as_deref(), truth.mixed.len()), (Some(COMMIT), 1));
    assert_eq!(truth.files.len(), 3);
    small::remove(&folder.path().join("config.json")).unwrap();
    let [truth] = found(folder.path()).try_into().unwrap();
    assert!(truth.mixed.is_empty(), "a record of a file that was deleted");
}

#[test]
fn several_listings_and_no_records_say_nothing() {
    let files = stored(&json!({"config.json": {"size": 7, "blob_id": sha1("c")}}));
    let folder = folder(&[
        (&format!(".cache/huggingface/trees/{COMMIT}.json"), &files),
        (&format!(".cache/huggingface/trees/{OTHER}.json"), &files),
    ]);
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.files.len(), truth.commit, truth.commits.len()), (0, None, 2));
    small::remove(&folder.path().join(format!(".cache/huggingface/trees/{OTHER}.json"))).unwrap();
    let [truth] = found(folder.path()).try_into().unwrap();
    assert_eq!((truth.files.len(), truth.commit.as_deref()), (1, Some(COMMIT)));
}

/// A snapshot of the cache with an LFS file, a plain one and a link to nothing.
fn snapshot(cache: &Path) -> PathBuf {
    use std::os::unix::fs::symlink;
    let repository = cache.join("models--org--name--v2");
    let snapshot = repository.join("snapshots").join(COMMIT);
    put(&repository, &format!("blobs/{}", sha256("m")), "m");
    put(&repository, &format!("blobs/{}", sha1("c")), "c");
    put(&snapshot, "copied.json", "x");
    let blob = |name: &str| format!("../../blobs/{name}");
    symlink(blob(&sha256("m")), snapshot.join("m.safetensors")).unwrap();
    symlink(blob(&sha1("c")), snapshot.join("config.json")).unwrap();
    symlink(blob(&sha1("gone")), snapshot.join("gone.json")).unwrap();
    snapshot
}

#[test]
fn links_of_the_cache_are_named_after_digests() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = snapshot(cache.path());
    let [truth] = found(&snapshot).try_into().unwrap();
    assert_eq!((truth.kind, truth.lists_everything), (Kind::HubCache, false));
    assert_eq!(truth.repository.as_deref(), Some("org/name--v2"));
    assert_eq!(truth.commit.as_deref(), Some(COMMIT));
    is(&truth, "m.safetensors", Algorithm::Sha256, &sha256("m"));
    is(&truth, "config.json", Algorithm::GitBlobSha1, &sha1("c"));
    assert_eq!(truth.files.len(), 2);
    let files = stored(&json!({"config.json": {"size": 1, "blob_id": sha1("c")},
                               "absent.json": {"size": 1, "blob_id": sha1("a")}}));
    put(&cache.path().join("models--org--name--v2"), &format!("trees/{COMMIT}.json"), &files);
    let [truth] = found(&snapshot).try_into().unwrap();
    assert_eq!((truth.lists_everything, truth.files.len()), (true, 3));
    assert_eq!(truth.files["config.json"].size, Some(1));
}

#[test]
fn sums_manifest_and_pointers_are_all_found() {
    let pointer = format!("{}oid sha256:{}\nsize 12\n", lfs::MAGIC, sha256("x"));
    let line = format!("{}  a\n", sha256("a"));
    let manifest = manifest_text("m", &json!([]));
    let folder = folder(&[
        ("SHA256SUMS", &line),
        ("B3SUMS", &line),
        (MANIFEST, &manifest),
        ("sub/m.safetensors", &pointer),
        ("short", "version"),
    ]);
    let truths = found(folder.path());
    let kinds: Vec<Kind> = truths.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::Sums, Kind::Sums, Kind::Manifest, Kind::Lfs]);
    is(&truths[1], "a", Algorithm::Blake3, &sha256("a"));
    is(&truths[3], "sub/m.safetensors", Algorithm::Sha256, &sha256("x"));
}
