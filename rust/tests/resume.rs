//! Runs that are stopped and go on: same bytes, nothing read twice that was recorded.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::sync::atomic::Ordering;

use common::{Bench, bf16_bytes, folder_bytes, options, run, write_shard};
use lingconv_core::catalog::{CONFIG, Catalog};
use lingconv_core::dtype::Dtype::BF16;
use lingconv_core::error::Kind;
use lingconv_core::exec::{Options, Outcome, Progress, Run, Worker};
use lingconv_core::plan::{self, Plan, Request};

/// Four shards of some Ling-like experts, 24 MB in all.
fn source() -> (Bench, Catalog, Plan) {
    let bench = Bench::new();
    for shard in 0..4u64 {
        let name = |e: u64, p: &str| format!("model.layers.{shard}.mlp.experts.{e}.{p}.weight");
        let names: Vec<String> = (0..2)
            .flat_map(|e| ["gate_proj", "up_proj", "down_proj"].map(|p| name(e, p)))
            .collect();
        let tensors: Vec<_> = names
            .iter()
            .zip(0..)
            .map(|(n, i)| {
                (n.as_str(), BF16, [1000u64, 500].as_slice(), bf16_bytes(500_000, shard * 10 + i))
            })
            .collect();
        write_shard(&bench.source().join(format!("model-{shard}.safetensors")), &tensors);
    }
    std::fs::write(bench.source().join(CONFIG), "{}").unwrap();
    let catalog = bench.catalog();
    let request =
        Request::parse(r#"{"verb":"quantize","only":["*experts*"],"report":true}"#).unwrap();
    let plan = plan::build(&catalog, &request).unwrap();
    (bench, catalog, plan)
}

fn small_steps(options: Options) -> Options {
    Options { point_every: 300_000, memory: 8 << 20, ..options }
}

/// Runs until `limit` bytes have been written, then stops; the bytes read.
fn run_until(catalog: &Catalog, plan: &Plan, options: &Options, limit: u64) -> (bool, u64) {
    let progress = Progress::default();
    let key = plan.digest();
    let run = Run::new(catalog, plan, &key, options, &progress);
    let finished = std::thread::scope(|scope| {
        let handle = scope.spawn(|| run.execute());
        while !handle.is_finished() && progress.written.load(Ordering::Relaxed) < limit {
            std::hint::spin_loop();
        }
        progress.cancel.store(true, Ordering::Relaxed);
        match handle.join().unwrap() {
            Ok(_) => true,
            Err(e) => {
                assert_eq!(e.kind, Kind::Cancelled);
                false
            }
        }
    });
    (finished, progress.read.load(Ordering::Relaxed))
}

#[test]
fn stopped_at_any_moment_it_goes_on_and_gives_the_same_bytes() {
    let (bench, catalog, plan) = source();
    let calm = bench.output("calm");
    run(&catalog, &plan, &options(calm.clone())).unwrap();
    let expected = folder_bytes(&calm);
    for (round, jobs) in (0..24u64).zip([1, 2, 3].into_iter().cycle()) {
        let output = bench.output(&format!("out{round}"));
        let options = Options { jobs, ..small_steps(options(output.clone())) };
        let mut read = 0;
        let mut stops = 0;
        for limit in (1..).map(|n| n * (400_000 + round * 97_001)) {
            let (finished, bytes) = run_until(&catalog, &plan, &options, limit);
            read += bytes;
            stops += 1;
            if finished {
                break;
            }
        }
        assert!(folder_bytes(&output) == expected, "round {round}");
        // A stop loses at most the windows that were in flight, never what was recorded.
        let in_flight = stops * jobs as u64 * 5 * (1 << 20);
        assert!(read <= catalog.bytes() + in_flight, "{read} bytes read with {stops} stops");
    }
}

#[test]
fn what_is_recorded_is_not_read_again() {
    let (bench, catalog, plan) = source();
    let options = small_steps(options(bench.output("out")));
    let (finished, first) = run_until(&catalog, &plan, &options, 6_000_000);
    assert!(!finished);
    let (_, second) = run(&catalog, &plan, &options).unwrap();
    assert!(first + second < catalog.bytes() + 8 * 1_000_000, "{first} + {second}");
    assert_eq!(run(&catalog, &plan, &options).unwrap(), (Outcome::AlreadyComplete, 0));
}

#[test]
fn three_workers_give_what_one_gives_in_any_order() {
    let (bench, catalog, plan) = source();
    let alone = bench.output("alone");
    run(&catalog, &plan, &options(alone.clone())).unwrap();
    let output = bench.output("shared");
    for index in [3, 1, 2] {
        let worker = Worker::new(index, 3).unwrap();
        let options = Options { worker, ..options(output.clone()) };
        let (outcome, _) = run(&catalog, &plan, &options).unwrap();
        let last = index == 2;
        assert_eq!(outcome, if last { Outcome::Complete } else { Outcome::ShareComplete });
    }
    assert!(folder_bytes(&output) == folder_bytes(&alone));
}

#[test]
fn shares_are_disjoint_and_complete() {
    let (_bench, _catalog, plan) = source();
    for count in 1..6 {
        let mut all: Vec<usize> =
            (1..=count).flat_map(|i| Worker::new(i, count).unwrap().tasks(&plan)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..plan.tasks.len()).collect::<Vec<_>>());
    }
    assert!(Worker::new(0, 3).is_err() && Worker::new(4, 3).is_err());
}

#[test]
fn a_shard_replaced_between_two_runs_is_noticed() {
    let (bench, catalog, plan) = source();
    let options = small_steps(options(bench.output("out")));
    let (finished, _) = run_until(&catalog, &plan, &options, 8_000_000);
    assert!(!finished);
    let shard = bench.source().join("model-0.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    std::fs::write(&shard, bytes).unwrap();
    let catalog = bench.catalog();
    let plan = plan::build(&catalog, &plan.request).unwrap();
    run(&catalog, &plan, &options).unwrap();
    let fresh = Options { output: bench.output("fresh"), ..options.clone() };
    run(&catalog, &plan, &fresh).unwrap();
    assert!(folder_bytes(&options.output) == folder_bytes(&fresh.output));
}

#[test]
fn a_torn_journal_line_is_cut_off() {
    use std::io::Write;
    let (bench, catalog, plan) = source();
    let options = small_steps(options(bench.output("out")));
    let (finished, _) = run_until(&catalog, &plan, &options, 4_000_000);
    assert!(!finished);
    let journal = options.output.join(".lingconv/journal.1-of-1");
    let mut file = std::fs::OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(b"0123456789abcdef {\"done\":{\"task\":").unwrap();
    run(&catalog, &plan, &options).unwrap();
    let fresh = Options { output: bench.output("fresh"), ..options.clone() };
    run(&catalog, &plan, &fresh).unwrap();
    assert!(folder_bytes(&options.output) == folder_bytes(&fresh.output));
}

#[test]
fn memory_jobs_io_and_kernels_change_no_byte() {
    use lingconv_core::io::Mode;
    use lingconv_core::numeric::Level;
    let (bench, catalog, plan) = source();
    let calm = bench.output("calm");
    run(&catalog, &plan, &options(calm.clone())).unwrap();
    let expected = folder_bytes(&calm);
    let mut round = 0;
    for level in Level::available() {
        for (jobs, io, memory) in
            [(1, Mode::Direct, 16 << 20), (2, Mode::Buffered, 1 << 30), (8, Mode::Auto, 64 << 20)]
        {
            round += 1;
            let output = bench.output(&format!("out{round}"));
            let options =
                Options { jobs, io, memory, level, paranoid: true, ..options(output.clone()) };
            run(&catalog, &plan, &options).unwrap();
            assert!(folder_bytes(&output) == expected, "{level} {jobs} {io:?}");
        }
    }
}

#[test]
fn too_little_memory_is_said_with_the_least_that_works() {
    let (bench, catalog, plan) = source();
    let options = Options { memory: 1 << 20, ..options(bench.output("out")) };
    let error = run(&catalog, &plan, &options).unwrap_err();
    assert_eq!(error.kind, Kind::Space);
    assert!(error.hint.unwrap().contains("--memory"));
}
