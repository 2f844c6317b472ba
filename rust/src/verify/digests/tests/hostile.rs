//! Names, links and pipes that mean harm.

use super::*;

const HOSTILE: [&str; 20] = [
    "/etc/passwd",
    "//host/share",
    "..",
    "../up",
    "sub/../../up",
    "sub/..",
    "./../up",
    "a//b",
    "a/",
    "a/./b",
    "",
    ".",
    "C:/windows",
    "c:x",
    "..\\up",
    "a\\b",
    "\\\\host\\share",
    "nul\0byte",
    "/",
    "a/../../../../../../etc/shadow",
];

#[test]
fn hostile_names_are_refused_in_every_form() {
    let (d, g) = (sha256("x"), sha1("x"));
    let good = &d[..32];
    let mut cases = 0;
    let mut check = |form: &str, name: &str, text: String| {
        let error = parse(&text, "list", None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{form} {name:?}: {error}");
        assert!(error.path.is_some());
        cases += 1;
    };
    for name in HOSTILE {
        let escaped = name.replace('\\', "\\\\");
        check("gnu", name, format!("\\{d}  {escaped}\n"));
        check("bsd", name, format!("SHA256 ({name}) = {d}\n"));
        check("tree", name, json!([{"type": "file", "path": name, "oid": g}]).to_string());
        check("folder", name, json!([{"type": "directory", "path": name}]).to_string());
        check("model", name, json!({"siblings": [{"rfilename": name, "blobId": g}]}).to_string());
        check("stored", name, stored(&json!({name: {"size": 1, "blob_id": g}})));
        check("map", name, json!({name: {"size": 1, "blob_id": g}}).to_string());
        check("modelscope", name, modelscope_text(&json!([{"Path": name, "Sha256": d}])));
        check("ms folder", name, modelscope_text(&json!([{"Path": name, "Type": "tree"}])));
        let tensors = json!([{"name": "t", "range": [0, 4], "xxh3": good}]);
        check("manifest", name, manifest_text(name, &tensors));
        let signed = statement(&resources(&[(name, "sha256", d.clone())]), "files");
        check("signed", name, bundle(&signed));
    }
    assert_eq!(cases, 220);
    let long = json!({"x".repeat(MAX_PATH + 1): {"blob_id": g}}).to_string();
    assert_eq!(refused(&long, "x").kind, ErrorKind::Invalid);
}

#[test]
fn messages_carry_no_control_characters() {
    for name in ["\u{1b}[2J/../x", "a\nb/../x"] {
        let text = json!({name: {"blob_id": sha1("x")}}).to_string();
        let message = refused(&text, "x").message;
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn links_and_pipes_in_place_of_traces_are_not_opened() {
    use std::os::unix::fs::symlink;
    let outside = folder(&[
        ("SHA256SUMS", &format!("{}  a\n", sha256("a"))),
        ("huggingface/download/a.metadata", &metadata(COMMIT, &sha1("a"))),
        (&format!("huggingface/trees/{COMMIT}.json"), "{}"),
        ("a.metadata", &metadata(COMMIT, &sha1("a"))),
    ]);
    for (link, target) in [
        ("SHA256SUMS", "SHA256SUMS"),
        ("B3SUMS", "SHA256SUMS"),
        (MANIFEST, "SHA256SUMS"),
        (".cache", ""),
        (".cache/huggingface", "huggingface"),
        (".cache/huggingface/download", "huggingface/download"),
        (".cache/huggingface/trees", "huggingface/trees"),
        (".cache/huggingface/download/a.metadata", "a.metadata"),
    ] {
        let folder = folder(&[("model.safetensors", "")]);
        let path = folder.path().join(link);
        small::create_folder(path.parent().unwrap()).unwrap();
        symlink(outside.path().join(target), &path).unwrap();
        let error = detect(&Root::open(folder.path()).unwrap()).unwrap_err();
        assert!(error.message.contains("outside"), "{link}: {error}");
    }
    for pipe in ["SHA256SUMS", MANIFEST, ".cache/huggingface/download/a.metadata"] {
        let folder = folder(&[(".cache/huggingface/download/b", "")]);
        let path = folder.path().join(pipe);
        // Not by a command: its process would hold the locks of other tests for a moment.
        let private = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, private, 0)
            .unwrap();
        let error = detect(&Root::open(folder.path()).unwrap()).unwrap_err();
        assert!(error.message.contains("regular"), "{pipe}: {error}");
    }
}
