//! Every form is read, and refused where it is damaged.

use super::*;

#[test]
fn sums_of_every_form_are_read() {
    let (a, b) = (sha256("a"), sha256("b"));
    let upper = a.to_ascii_uppercase();
    let text = format!(
        "\u{feff}# self-attested by lingconv\n\n{upper}  model 1.safetensors\r\n{b} *config.json\n\
         \\{a}  line\\nfeed\nSHA256 (a (1).txt) = {b}\nSHA2-256(openssl.bin)= {a}\n\
         {a}  ./sub/x.json\n{b} short.json\nMD5 (old.txt) = 0123456789abcdef0123456789abcdef\n\
         BLAKE3 (config.json) = {a}\n{a}  SHA256SUMS\n"
    );
    let truth = known(&text, "/data/SHA256SUMS");
    assert_eq!(
        (truth.kind, truth.self_attested, truth.lists_everything),
        (Kind::Sums, true, false)
    );
    is(&truth, "model 1.safetensors", Algorithm::Sha256, &a);
    is(&truth, "line\nfeed", Algorithm::Sha256, &a);
    is(&truth, "a (1).txt", Algorithm::Sha256, &b);
    is(&truth, "openssl.bin", Algorithm::Sha256, &a);
    is(&truth, "sub/x.json", Algorithm::Sha256, &a);
    is(&truth, "short.json", Algorithm::Sha256, &b);
    assert_eq!(truth.files["config.json"].digests.len(), 2);
    assert_eq!((truth.files.len(), truth.notes.len()), (7, 2));
}

#[test]
fn the_name_of_the_file_tells_blake3_from_sha256() {
    let line = format!("{}  a\n", sha256("a"));
    for (name, algorithm) in [
        ("B3SUMS", Algorithm::Blake3),
        ("model.b3", Algorithm::Blake3),
        ("blake3.txt", Algorithm::Blake3),
        ("sha256sum.txt", Algorithm::Sha256),
        ("web3-sums.txt", Algorithm::Sha256),
    ] {
        is(&known(&line, name), "a", algorithm, &sha256("a"));
    }
}

#[test]
fn malformed_sums_are_refused_with_their_line() {
    let a = sha256("a");
    for line in [
        "hello".to_owned(),
        format!("{}  short", &a[1..]),
        format!("{a}0  long"),
        format!("g{}  digit", &a[1..]),
        a.clone(),
        format!("{a}  "),
        format!("\\{a}  bad\\t"),
        format!("\\{a}  end\\"),
        format!("SHA256 (x) = {}", &a[1..]),
    ] {
        let error = refused(&format!("{a}  fine\n{line}\n"), "SHA256SUMS");
        assert_eq!(error.kind, ErrorKind::Invalid, "{line}");
        assert!(error.message.starts_with("line 2: "), "{}", error.message);
        assert_eq!(error.path, Some("SHA256SUMS".into()));
    }
}

#[test]
fn a_line_may_repeat_but_not_contradict() {
    let (a, b) = (sha256("a"), sha256("b"));
    assert_eq!(known(&format!("{a}  x\n{a} *x\n"), "s").files.len(), 1);
    let error = refused(&format!("{a}  x\n{b}  x\n"), "s");
    assert!(error.message.contains("twice"), "{}", error.message);
    let entry = |oid: &str| json!({"type": "file", "path": "x", "size": 1, "oid": oid});
    let twice = json!([entry(&sha1("a")), entry(&sha1("b"))]).to_string();
    assert_eq!(refused(&twice, "t.json").kind, ErrorKind::Invalid);
    let sizes = json!([{"path": "x", "size": 1}, {"path": "x", "size": 2}]).to_string();
    assert_eq!(refused(&sizes, "t.json").kind, ErrorKind::Invalid);
    // A map would silently keep the last of two equal keys.
    let (one, two) = (sha1("a"), sha1("b"));
    let keys = format!(r#"{{"x": {{"blob_id": "{one}"}}, "x": {{"blob_id": "{two}"}}}}"#);
    assert_eq!(refused(&keys, "t.json").kind, ErrorKind::Invalid);
}

#[test]
fn nothing_to_compare_with_is_said() {
    for text in [
        "",
        "# only a comment\n",
        "MD5 (x) = 0123456789abcdef0123456789abcdef\n",
        "[]",
        "{}",
        r#"{"Code": 200, "Success": true, "Data": {"Files": null}}"#,
        r#"{"Code": 404, "Success": false, "Message": "no such model"}"#,
        r#"{"error": "Repository not found"}"#,
    ] {
        assert_eq!(refused(text, "x").kind, ErrorKind::Unverifiable, "{text}");
    }
}

#[test]
fn the_tree_listing_of_the_hub() {
    let text = json!([
        {"type": "directory", "path": "sub", "oid": sha1("d"), "size": 0},
        {"type": "file", "path": "config.json", "size": 7, "oid": sha1("c")},
        {"type": "file", "path": "sub/m.safetensors", "size": 9, "oid": sha1("pointer"),
         "lfs": {"oid": sha256("m"), "size": 9, "pointerSize": 134}, "xetHash": sha256("xet")},
        {"type": "file", "path": "xet-only.bin", "size": 5, "oid": sha1("p"), "xetHash": "1"},
    ]);
    let truth = known(&text.to_string(), "tree.json");
    assert_eq!((truth.kind, truth.lists_everything), (Kind::HubListing, true));
    is(&truth, "config.json", Algorithm::GitBlobSha1, &sha1("c"));
    is(&truth, "sub/m.safetensors", Algorithm::Sha256, &sha256("m"));
    assert_eq!(truth.files["sub/m.safetensors"].size, Some(9));
    assert_eq!(truth.files["xet-only.bin"], Expected { size: Some(5), ..Expected::default() });
    assert_eq!((truth.files.len(), truth.notes.len()), (3, 1));
}

#[test]
fn the_model_listing_of_the_hub() {
    let text = json!({"id": "org/name", "sha": COMMIT, "siblings": [
        {"rfilename": "config.json", "size": 7, "blobId": sha1("c")},
        {"rfilename": "m.safetensors", "size": 9, "blobId": sha1("p"),
         "lfs": {"sha256": sha256("m"), "size": 9, "pointerSize": 134}},
    ]});
    let truth = known(&text.to_string(), "model.json");
    assert_eq!(truth.repository.as_deref(), Some("org/name"));
    assert_eq!((truth.commit.as_deref(), truth.commits.len()), (Some(COMMIT), 1));
    is(&truth, "m.safetensors", Algorithm::Sha256, &sha256("m"));
    is(&truth, "config.json", Algorithm::GitBlobSha1, &sha1("c"));
}

#[test]
fn a_cut_or_flat_listing_of_the_hub_is_not_whole() {
    let page = |count: usize| {
        let row = |i| json!({"type": "file", "path": format!("f{i}"), "size": 1, "oid": sha1("c")});
        Value::from((0..count).map(row).collect::<Vec<_>>()).to_string()
    };
    assert!(known(&page(999), "x").lists_everything);
    let cut = known(&page(1_000), "x");
    assert!(!cut.lists_everything && cut.notes[0].contains("may be cut"));
    assert!(parse(&page(1_000), "x", Some(Kind::HubListing)).unwrap().lists_everything);
    let flat = json!([{"type": "directory", "path": "sub"}, {"type": "file", "path": "sub-x"}]);
    let flat = known(&flat.to_string(), "x");
    assert!(!flat.lists_everything && flat.notes.iter().any(|n| n.contains("not recursive")));
}

#[test]
fn a_stored_listing_with_and_without_its_envelope() {
    let files = json!({
        "config.json": {"size": 7, "blob_id": sha1("c")},
        "m.safetensors": {"size": 9, "blob_id": sha1("p"), "lfs_sha256": sha256("m"),
                          "lfs_size": 9, "xet_hash": sha256("x")},
    });
    for text in [files.to_string(), stored(&files)] {
        let truth = known(&text, &format!("/x/trees/{COMMIT}.json"));
        assert_eq!((truth.kind, truth.lists_everything), (Kind::HubLocal, true));
        assert_eq!(truth.commit.as_deref(), Some(COMMIT));
        is(&truth, "m.safetensors", Algorithm::Sha256, &sha256("m"));
        is(&truth, "config.json", Algorithm::GitBlobSha1, &sha1("c"));
    }
    let newer = json!({"format_version": 2, "files": {}}).to_string();
    assert_eq!(refused(&newer, "x.json").kind, ErrorKind::Invalid);
}

#[test]
fn a_listing_of_modelscope() {
    let file = |name: &str, sha256: &str, revision: &str| {
        json!({"Path": name, "Name": name, "Type": "blob", "Size": 9, "Sha256": sha256,
               "Revision": revision, "IsLFS": true})
    };
    let files = json!([
        {"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""},
        file("sub/m.safetensors", &sha256("m").to_ascii_uppercase(), OTHER),
        file("config.json", "", COMMIT),
    ]);
    let truth = known(&modelscope_text(&files), "files.json");
    assert_eq!((truth.kind, truth.lists_everything), (Kind::ModelScope, true));
    is(&truth, "sub/m.safetensors", Algorithm::Sha256, &sha256("m"));
    assert!(truth.files["config.json"].digests.is_empty());
    assert_eq!((truth.commit, truth.files.len(), truth.mixed.len()), (None, 2, 0));
    for committer in [json!({"Id": COMMIT}), json!({"Id": "", "ShortId": &COMMIT[..8]})] {
        let text = json!({"Data": {"Files": files, "LatestCommitter": committer}}).to_string();
        assert_eq!(known(&text, "x").commit.as_deref(), Some(COMMIT));
    }
}

#[test]
fn a_listing_of_modelscope_is_cut_at_its_limit() {
    let files = |count: usize| {
        let row = |i| json!({"Path": format!("f{i}"), "Size": 1, "Sha256": sha256("x")});
        modelscope_text(&Value::from((0..count).map(row).collect::<Vec<_>>()))
    };
    let whole = known(&files(modelscope::LISTING_LIMIT - 1), "x");
    let cut = known(&files(modelscope::LISTING_LIMIT), "x");
    assert!(whole.lists_everything && whole.notes.is_empty());
    assert!(!cut.lists_everything && cut.notes[0].contains("3000"));
}

#[test]
fn a_manifest_with_digests_of_tensors() {
    let xxh3 = &sha256("t")[..32];
    let tensors = json!([
        {"name": "b", "dtype": "F32", "shape": [1], "range": [4, 100], "xxh3": xxh3, "from": "b"},
        {"name": "empty", "range": [4, 4], "xxh3": xxh3},
        {"name": "a", "range": [0, 4], "xxh3": xxh3.to_ascii_uppercase()},
    ]);
    let truth = known(&manifest_text("m.safetensors", &tensors), "lingconv.manifest.json");
    assert_eq!(
        (truth.kind, truth.self_attested, truth.lists_everything),
        (Kind::Manifest, true, true)
    );
    let file = &truth.files["m.safetensors"];
    let ranges: Vec<_> = file.tensors.iter().map(|t| (&*t.name, t.begin, t.end)).collect();
    assert_eq!(ranges, [("a", 4096, 4100), ("empty", 4100, 4100), ("b", 4100, 4196)]);
    assert_eq!((file.size, file.tensors[0].xxh3.to_string()), (Some(4196), xxh3.to_owned()));
    is(&truth, "config.json", Algorithm::Sha256, &sha256("c"));
}

#[test]
fn manifests_that_contradict_themselves_are_refused() {
    let good = &sha256("t")[..32];
    for (begin, end, xxh3) in
        [(0, 101, good), (5, 4, good), (0, u64::MAX, good), (0, 4, &good[1..]), (0, 4, "x")]
    {
        let tensors = json!([{"name": "t", "range": [begin, end], "xxh3": xxh3}]);
        let error = refused(&manifest_text("m", &tensors), "x");
        assert_eq!((error.kind, error.tensor.is_some()), (ErrorKind::Invalid, true));
    }
    let overlap = json!([{"name": "s", "range": [0, 5], "xxh3": good},
                         {"name": "t", "range": [4, 8], "xxh3": good}]);
    assert!(refused(&manifest_text("m", &overlap), "x").message.contains("overlap"));
    for text in
        [r#"{"schema": "lingconv.manifest/2", "files": []}"#, r#"{"schema": "x", "files": []}"#]
    {
        assert_eq!(refused(text, "x").kind, ErrorKind::Invalid);
    }
}

#[test]
fn a_signed_statement_in_all_its_wrappings() {
    let rows = [
        ("a.json", "sha256", sha256("a")),
        ("b.json", "blake3", sha256("b")),
        ("c.json", "blake2b", sha256("c") + &sha256("d")),
    ];
    let statement = statement(&resources(&rows), "files");
    for text in [bundle(&statement), envelope(&statement).to_string(), statement.to_string()] {
        let truth = known(&text, "model.sig");
        assert_eq!((truth.kind, truth.lists_everything), (Kind::Signing, true));
        is(&truth, "a.json", Algorithm::Sha256, &sha256("a"));
        is(&truth, "b.json", Algorithm::Blake3, &sha256("b"));
        assert!(truth.files["c.json"].digests.is_empty());
        assert!(truth.notes[0].contains("not checked"));
    }
    let old = json!({"_type": "x", "predicateType": "https://model_signing/Digests/v0.1",
                     "subject": [{"name": "a", "digest": {"sha256": sha256("a")}}]});
    is(&known(&bundle(&old), "x"), "a", Algorithm::Sha256, &sha256("a"));
}

#[test]
fn bundles_that_cannot_be_used_are_refused() {
    let shards = statement(&resources(&[("a:0:8", "sha256-sharded-8", sha256("a"))]), "shards");
    assert_eq!(refused(&bundle(&shards), "x").kind, ErrorKind::Unverifiable);
    let foreign = statement(&resources(&[("a", "blake2b", sha256("a"))]), "files");
    assert_eq!(refused(&bundle(&foreign), "x").kind, ErrorKind::Unverifiable);
    let mut forged = statement(&resources(&[("a", "sha256", sha256("a"))]), "files");
    forged["predicate"]["resources"][0]["digest"] = sha256("b").into();
    assert!(refused(&bundle(&forged), "x").message.contains("do not add up"));
    let other = json!({"predicateType": "x", "subject": [], "predicate": {}});
    assert_eq!(refused(&bundle(&other), "x").kind, ErrorKind::Invalid);
    assert_eq!(refused(r#"{"dsseEnvelope": {"payload": "%%"}}"#, "x").kind, ErrorKind::Invalid);
}

#[test]
fn a_pointer_is_strict() {
    let oid = sha256("x");
    let good = format!("{}ext-0-x sha256:1\noid sha256:{oid}\nsize 12\n", lfs::MAGIC);
    let truth = known(&good, "/clone/m.safetensors");
    is(&truth, "m.safetensors", Algorithm::Sha256, &oid);
    assert_eq!(truth.files["m.safetensors"].size, Some(12));
    for body in [
        format!("oid sha256:{oid}\n"),
        format!("oid sha256:{}\nsize 1\n", &oid[1..]),
        format!("oid md5:{oid}\nsize 1\n"),
        format!("oid sha256:{oid}\nsize +1\n"),
        format!("oid sha256:{oid}\nsize 99999999999999999999\n"),
        format!("oid sha256:{oid}\nsize 1\nsize 2\n"),
        format!("oid sha256:{oid}\nsize 1\nrest\n"),
        format!("oid sha256:{oid}\nsize 1\next-0 {}\n", "x".repeat(1_024)),
    ] {
        assert_eq!(lfs::pointer(&format!("{}{body}", lfs::MAGIC)), None, "{body}");
    }
}

#[test]
fn what_is_no_list_is_refused() {
    for text in ["<!DOCTYPE html>", "{", "[1]", "[{}]", "{\"a\": 1}", "[", "{\"Data\": []}", "[[[["]
    {
        assert_eq!(refused(text, "x").kind, ErrorKind::Invalid, "{text}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(refused(&deep, "x").kind, ErrorKind::Invalid);
    let long = "{},".repeat(MAX_FILES + 1);
    let rows: Result<json::Rows<Value>> = json::parse(&format!("[{}0]", long.replace("{}", "0")));
    assert!(rows.unwrap_err().message.contains(&format!("more than {MAX_FILES}")));
}

#[test]
fn git_names_its_objects_by_type_and_size() {
    assert_eq!(git_blob_header(1_234), b"blob 1234\0");
}

#[test]
fn a_file_that_the_user_names() {
    let folder = folder(&[("sums.txt", &format!("{}  a\n", sha256("a")))]);
    let truth = read_file(&folder.path().join("sums.txt")).unwrap();
    is(&truth, "a", Algorithm::Sha256, &sha256("a"));
    assert!(truth.origin.ends_with("/sums.txt"));
    for path in [folder.path().to_owned(), folder.path().join("none")] {
        assert_eq!(read_file(&path).unwrap_err().kind, ErrorKind::Usage);
    }
}

#[test]
#[allow(clippy::disallowed_methods)]
fn a_binary_file_is_no_list() {
    let folder = folder(&[]);
    let path = folder.path().join("x");
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert_eq!(read_file(&path).unwrap_err().kind, ErrorKind::Invalid);
}
