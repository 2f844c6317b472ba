//! Every input of the corpus, as seeds or as what once was a fault, without a fuzzer.
#![expect(clippy::disallowed_methods, reason = "the corpus is no checkpoint")]

use std::path::Path;

use lingconv_fuzz::TARGETS;

#[test]
fn what_was_found_stays_mended() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, check) in TARGETS {
        let folder = std::fs::read_dir(corpus.join(target)).unwrap();
        let mut paths: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        paths.sort_unstable();
        assert!(paths.len() >= 5, "{target} has {} inputs", paths.len());
        for path in paths {
            println!("{}", path.display());
            check(&std::fs::read(&path).unwrap());
        }
    }
}
