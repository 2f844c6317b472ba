//! Writes the inputs that fuzzing begins with into `corpus`: one sound example of each kind, and
//! some that are nearly sound.
#![expect(clippy::disallowed_methods, reason = "the corpus is no checkpoint")]

use std::path::Path;

use lingconv_core::plan::saved::SavedPlan;
use lingconv_core::plan::{self, Request, summary};
use lingconv_core::target::Target;
use lingconv_fuzz::{folder, journal, sound, tiny};
use serde_json::{Value, json};

type Seed = (String, Vec<u8>);

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let all: [(&str, Vec<Seed>); 9] = [
        ("header", headers()),
        ("catalog", catalogs()),
        ("manifest", manifests()),
        ("journal", journals()),
        ("plan", plans()),
        ("digests", digests()),
        ("rules", rules()),
        ("planner", choices(24, 64)),
        ("kernels", choices(16, 200)),
    ];
    for (target, seeds) in all {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, content) in seeds {
            std::fs::write(folder.join(name), content)?;
        }
    }
    Ok(())
}

fn numbered(texts: Vec<String>) -> Vec<Seed> {
    let named = |(number, text): (usize, String)| (format!("seed-{number:02}"), text.into_bytes());
    texts.into_iter().enumerate().map(named).collect()
}

/// Files as one text, see [`lingconv_fuzz::folder`].
fn bundle(files: &[(&str, String)]) -> String {
    let file = |(name, text): &(&str, String)| format!("-- {name} --\n{}\n", text.trim_end());
    files.iter().map(file).collect()
}

fn headers() -> Vec<Seed> {
    let one = |dtype: &str, shape: &str, end: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let two = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    numbered(vec![
        two.to_owned(),
        "{}".to_owned(),
        one("F4", "[2]", 1),
        one("F8_E4M3", "[1,1,1,1,1,1,1,1]", 1),
        one("U8", "[0]", 0),
        one("BOOL", "[4294967296]", 1 << 32),
        two.replace("[4,16]", "[2,14]"),
        two.replace('a', r"\u0061"),
        two.replace(r#"{"format":"pt"}"#, "null"),
        format!("{two}   "),
    ])
}

fn catalogs() -> Vec<Seed> {
    let plain = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
    let index = r#"{"metadata":{"total_size":12},"weight_map":{"a":"sub/x.safetensors"}}"#;
    let index = ("model.safetensors.index.json", index.to_owned());
    let mut all: Vec<String> =
        (0..3).map(|which| bundle(&tiny::files(which, which == 1))).collect();
    all.extend([
        bundle(&[("x.safetensors", plain.to_owned())]),
        bundle(&[("sub/x.safetensors", plain.to_owned()), index.clone()]),
        bundle(&[("x.safetensors", plain.to_owned()), ("y.safetensors", plain.to_owned())]),
        bundle(&[("sub/x.safetensors", "version https://git-lfs".to_owned()), index]),
    ]);
    numbered(all)
}

fn manifests() -> Vec<Seed> {
    let layouts = [
        ("0", "vllm-0.32", 2, 1, 1),
        ("0 fp8", "vllm-0.11", 2, 2, 2),
        ("0 fp8", "sglang", 1, 2, 1),
        ("1", "vllm-0.32", 1, 2, 1),
        ("2", "hf", 1, 2, 2),
    ];
    let mut all = Vec::new();
    for (number, (preset, target, tp, pp, ep)) in layouts.into_iter().enumerate() {
        let ask = json!({"target": target, "tp": tp, "pp": pp, "ep": ep});
        let mut request = json!({"verb": "reshard", "reshard": ask});
        if number == 0 {
            request["reshard"]["format"] = "fp8".into();
        }
        let mut files = vec![("preset", preset.to_owned()), ("request.json", request.to_string())];
        all.push(bundle(&files));
        let size = json!({"source": {"shards": [{"size": 1}], "digest": ""}}).to_string();
        let other = json!({"request": {"reshard": {"tp": 1, "ep": 3}}}).to_string();
        for patch in [size, other] {
            files.push(("patch.json", patch));
            all.push(bundle(&files));
            files.pop();
        }
    }
    let mut files = tiny::files(0, false);
    let ask = json!({"target": "vllm-0.32", "tp": 2, "pp": 2, "ep": 2});
    files.push(("request.json", json!({"verb": "reshard", "reshard": ask}).to_string()));
    all.push(bundle(&files));
    numbered(all)
}

fn journals() -> Vec<Seed> {
    let (journal, output) = journal::recorded().unwrap_or_default();
    let records: Vec<&str> = journal.lines().collect();
    let file = |name: &str, records: &[&str]| {
        format!("-- .lingconv/journal.{name} --\n{}\n", records.join("\n"))
    };
    let written = |name: &str| [format!("-- {name} --\n").as_bytes(), &output].concat();
    let part = written("a.safetensors.part");
    let stopped = |records: &[&str]| [file("1-of-1", records).into_bytes(), part.clone()].concat();
    let other = json!({"begin": {"plan": "another"}}).to_string();
    let kept = [records[0], r#"{"kept":"a"}"#];
    let mut all: Vec<Vec<u8>> =
        (1..=records.len()).map(|count| stopped(&records[..count])).collect();
    all.extend([
        [file("1-of-1", &records).into_bytes(), written("a.safetensors")].concat(),
        (file("1-of-2", &records) + &file("2-of-2", &[&other])).into_bytes(),
        (file("1-of-1", &kept) + "!0123 torn").into_bytes(),
        file("1-of-1", &records[..2]).into_bytes(),
        b"-- foreign.txt --\nmine".to_vec(),
    ]);
    let named = |(number, content)| (format!("seed-{number:02}"), content);
    all.into_iter().enumerate().map(named).collect()
}

fn plans() -> Vec<Seed> {
    let place = folder::scratch();
    let config = tiny::config(0);
    let tensors = tiny::model(&config).map(|m| tiny::tensors(&m, false)).unwrap_or_default();
    let Some(catalog) = sound(tiny::catalog(place.path(), &config, vec![tensors])) else {
        return Vec::new();
    };
    let asked = [
        json!({"verb": "quantize"}),
        json!({"verb": "quantize", "experts_only": true, "dialect": "ling", "rope_yarn": 4.0}),
        json!({"verb": "quantize", "only": ["*experts*"], "scale": "ue8m0", "prove": true}),
        json!({"verb": "reshard", "reshard": {"target": "vllm-0.32", "tp": 2, "pp": 2, "ep": 1}}),
        json!({"verb": "reshard", "reshard": {"target": "hf", "tp": 1, "pp": 2, "ep": 2,
            "rank": {"pp": 1}, "earlier": [{"pp": 0}]}}),
        json!({"verb": "dequantize"}),
    ];
    let save = |request: &Value| {
        let request = sound(Request::parse(&request.to_string()))?;
        let plan = sound(plan::build(&catalog, &request))?;
        let saved = sound(SavedPlan::new(&plan, &sound(summary::summarize(&catalog, &plan))?))?;
        let mut saved = serde_json::to_value(saved).ok()?;
        saved["summary"] = json!({});
        Some(saved.to_string().replace(&catalog.digest(), "SOURCE"))
    };
    let mut all: Vec<String> = asked.iter().filter_map(save).collect();
    let refused = json!({"schema": "lingconv.saved-plan/1", "format": 1, "tool": "0", "summary": 0,
        "request": asked[5], "catalog_digest": "SOURCE", "plan_digest": ""});
    all.push(refused.to_string());
    numbered(all)
}

fn digests() -> Vec<Seed> {
    let (long, short) = ("0123456789abcdef".repeat(4), "0123456789abcdef0123456789abcdef01234567");
    let lfs = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{long}\nsize 12\n");
    let tree = json!({"format_version": 1, "files": {"a": {"size": 1, "blob_id": short,
        "lfs_sha256": long}, "b/c": {"size": 2, "blob_id": short}}});
    let listing = json!([{"type": "file", "path": "a", "size": 1, "oid": short,
        "lfs": {"oid": long, "size": 1, "pointerSize": 1}}, {"type": "directory", "path": "d"}]);
    let siblings = json!({"sha": short, "id": "o/n", "siblings": [{"rfilename": "a", "size": 1,
        "blobId": short, "lfs": {"sha256": long, "size": 1}}]});
    let scope = json!({"Code": 200, "Data": {"Files": [{"Path": "a", "Size": 1, "Sha256": long,
        "Type": "blob", "Revision": short}]}, "Success": true});
    let resources = json!({"resources": [{"name": "a", "algorithm": "sha256", "digest": long}]});
    let statement = json!({"predicateType": "https://model_signing/signature/v1.0",
        "predicate": resources, "subject": []});
    let payload =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, statement.to_string());
    let bundle_of_signing = json!({"dsseEnvelope": {"payload": payload,
        "payloadType": "application/vnd.in-toto+json"}});
    let manifest = json!({"schema": "lingconv.manifest/1", "tensors": "", "request": {"verb":
        "quantize"}, "sidecars": [], "files": [{"path": "a", "size": 9, "sha256": long,
        "data_start": 8, "tensors": [{"name": "t", "range": [0, 1], "xxh3": &long[..32]}]}]});
    let metadata = format!("{short}\n{long}\n1712656091.1\n");
    let cache = ".cache/huggingface";
    let download = bundle(&[
        ("a", "x".to_owned()),
        (&format!("{cache}/download/a.metadata"), metadata),
        (&format!("{cache}/trees/{short}.json"), tree.to_string()),
        ("SHA256SUMS", format!("{long}  a")),
        ("p.safetensors", lfs.clone()),
    ]);
    let sums = format!("# by hand\n{long}  a\n{long} *b\n\\{long}  c\\nd\nSHA256 (e) = {long}\n");
    let mut all = vec![sums, lfs, download, statement.to_string()];
    all.extend(
        [tree, listing, siblings, scope, bundle_of_signing, manifest].map(|v| v.to_string()),
    );
    numbered(all)
}

fn rules() -> Vec<Seed> {
    let architectures = [
        include_str!("../../data/architectures/bailing_moe_v2.toml"),
        include_str!("../../data/architectures/deepseek_v3.toml"),
        include_str!("../../data/architectures/qwen3_moe.toml"),
    ];
    let with = |(which, text): (usize, &&str)| {
        let config = tiny::config(which).to_string();
        bundle(&[("config.json", config), ("architecture.toml", (*text).to_owned())])
    };
    let mut all: Vec<String> = architectures.iter().enumerate().map(with).collect();
    let small = "name = \"X\"\narchitectures = [\"X\"]\n[dims]\nlayers = [\"l\", 2]\n\
        experts = [\"(l + 1) * 2 / 1\"]\nheads = [3]\n[layers]\ndense_below = [1]\nmoe_step = [1]\n\
        [[tensor]]\nname = \"a.{layer}.b.{expert}.c\"\nrole = \"expert.up\"\nwhere = \"moe\"\n\
        tp = \"row\"\nshape = [\"heads\", \"2 * (heads + 1)\"]\nquantize = true\n";
    all.push(bundle(&[("config.json", r#"{"l":3}"#.into()), ("architecture.toml", small.into())]));
    let targets = Target::builtins().filter_map(|target| Target::builtin_text(&target.name));
    all.extend(targets.map(|text| bundle(&[("target.toml", text.to_owned())])));
    for text in [
        include_str!("../../data/dialects/deepseek.toml"),
        include_str!("../../data/dialects/ling.toml"),
        include_str!("../../data/dialects/compressed-tensors-cpu.toml"),
        include_str!("../../data/dialects/compressed-tensors-channel.toml"),
    ] {
        all.push(bundle(&[("dialect.toml", text.to_owned())]));
    }
    numbered(all)
}

/// Choices for targets that take rows of them: anything will do.
fn choices(count: u64, length: usize) -> Vec<Seed> {
    let row = |seed: u64| -> Seed {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (format!("seed-{seed:02}"), std::iter::repeat_with(next).take(length).collect())
    };
    (0..count).map(row).collect()
}
