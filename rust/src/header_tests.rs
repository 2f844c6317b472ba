use super::*;
use crate::error::Kind;
use proptest::prelude::*;

fn parse(json: &str, data: u64) -> Result<Header> {
    Header::parse(json.as_bytes(), data)
}

const A: &str = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;

#[test]
fn accepts_a_plain_header_and_sorts_by_data() {
    let h = parse(
        &format!(r#"{{"b":{{"dtype":"F32","shape":[],"data_offsets":[4,8]}},{A},"__metadata__":{{"format":"pt"}}}}  "#),
        8,
    )
    .unwrap();
    assert_eq!(h.tensors.iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(h.metadata, [("format".to_owned(), "pt".to_owned())]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn refuses_what_two_readers_could_understand_differently() {
    let cases = [
        (format!("{{{A},{A}}}"), 4, "duplicate key"),
        (
            format!(r#"{{{A},"\u0061":{{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}}}"#),
            8,
            "duplicate key",
        ),
        (format!("{{{A}}}"), 5, "bytes follow"),
        (format!("{{{A}}}"), 3, "truncated"),
        (
            format!(r#"{{{A},"b":{{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}}}"#),
            5,
            "overlaps",
        ),
        (format!(r#"{{{A},"b":{{"dtype":"U8","shape":[2],"data_offsets":[5,7]}}}}"#), 7, "hole"),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#.into(),
            4,
            "is not the 4 bytes",
        ),
        (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#.into(), 1, "no byte size"),
        (
            r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#.into(),
            0,
            "no byte size",
        ),
        (r#"{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, "unknown variant"),
        (
            r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(),
            1,
            "duplicate field",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#.into(),
            1,
            "unknown field",
        ),
        (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}"#.into(), 1, "malformed"),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#.into(), 1, "malformed"),
        (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#.into(), 1, "malformed"),
        (r#"{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}"#.into(), 1, "malformed"),
        (
            r#"{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}}"#.into(),
            1,
            "malformed",
        ),
        (r#"{"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}"#.into(), 1, "malformed"),
        (r#"{"a":null}"#.into(), 0, "malformed"),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0, "malformed"),
        (r#"{"__metadata__":{"a":"x","a":"y"}}"#.into(), 0, "duplicate metadata"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "duplicate key"),
        (format!("{{{A}}}x"), 4, "trailing"),
        (format!(" {{{A}}}"), 4, "begin with"),
        (format!("{{{A},}}"), 4, "malformed"),
        (format!("{{{A}"), 4, "malformed"),
        ("[]".into(), 0, "begin with"),
        (String::new(), 0, "begin with"),
        (r#"{"a":"#.to_owned() + &"[".repeat(100_000), 0, "malformed"),
    ];
    for (json, data, expected) in cases {
        let error = parse(&json, data).expect_err(&json).to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
}

/// The library takes them; what is above a bound of ours is not called damaged.
#[test]
fn what_is_above_a_bound_is_called_too_large() {
    let long_name = "n".repeat(MAX_NAME + 1);
    let metadata: Vec<String> = (0..100_001).map(|n| format!(r#""{n}":"""#)).collect();
    let cases = [
        (
            r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#.to_owned(),
            1,
            "more than 8 dimensions",
        ),
        (
            format!(r#"{{"{long_name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#),
            0,
            "a name of 1025 bytes",
        ),
        (
            format!(r#"{{"__metadata__":{{{}}}}}"#, metadata.join(",")),
            0,
            "more than 100000 metadata",
        ),
    ];
    for (json, data, expected) in cases {
        let error = parse(&json, data).unwrap_err();
        assert_eq!(error.kind, Kind::Impossible, "{error}");
        assert!(error.message.contains(expected), "{error}");
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data as usize, 0);
        assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
    }
}

const RANK9: &str = r#""z":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}"#;

/// What nobody could read is damaged, however large it is.
#[test]
fn damage_comes_before_size() {
    let twice = r#""k":"","#.repeat(100_001);
    let cases = [
        (format!("{{{RANK9},,,]"), 4, "malformed"),
        (format!("{{{RANK9},{RANK9}}}"), 4, "duplicate key"),
        (format!("{{{RANK9}}}"), 3, "truncated"),
        (format!("{{{},{A}}}", RANK9.replace("[0,4]", "[4,80]")), 8, "truncated"),
        (format!(r#"{{"__metadata__":{{{twice}"k":""}}}}"#), 0, "duplicate metadata"),
    ];
    for (json, data, expected) in cases {
        let error = parse(&json, data).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{error}");
        assert!(error.message.contains(expected), "{error}");
    }
    let allowance = Allowance::of_a_model();
    allowance.take_tensors(280_000).unwrap();
    let parse = |data| Header::parse_within(format!("{{{A}}}").as_bytes(), data, &allowance);
    assert_eq!(parse(4).unwrap_err().kind, Kind::Impossible);
    assert_eq!(parse(3).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_text_that_is_quoted_is_cut() {
    let long = "\u{80}".repeat(1 << 20);
    let error = parse(&format!(r#"{{"__metadata__":"{long}"}}"#), 0).unwrap_err();
    assert!(error.message.len() < 1_000 && error.message.contains("… at line 1"), "{error}");
    let error = parse(&format!(r#"{{"__metadata__":{{"k":"{}"}}}}"#, long.repeat(4)), 0);
    assert_eq!(error.unwrap_err().kind, Kind::Impossible);
}

#[test]
fn refuses_bytes_that_are_not_utf8() {
    assert!(Header::parse(b"{\"a\xff\":1}", 0).is_err());
}

#[test]
fn length_prefix_is_bounded_by_file_and_limit() {
    assert_eq!(json_length(2u64.to_le_bytes(), 10).unwrap(), 2);
    for (length, file) in [(0, 8), (1, 9), (3, 10), (MAX_HEADER + 1, u64::MAX), (u64::MAX, 100)] {
        assert!(json_length(length.to_le_bytes(), file).is_err(), "{length} of {file}");
    }
}

#[test]
fn null_metadata_is_a_warning_as_the_library_takes_it() {
    assert_eq!(parse(r#"{"__metadata__":null}"#, 0).unwrap().warnings.len(), 1);
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let dtype = (0..Dtype::ALL.len()).prop_map(|i| Dtype::ALL[i]);
    let shape = proptest::collection::vec(0u64..5, 0..4);
    let one = ("[a-zé\"\\\\.]{1,12}", dtype, shape);
    proptest::collection::btree_map("[a-zé\"\\\\.]{1,12}", one, 0..8).prop_map(|map| {
        map.into_iter()
            .filter(|(_, (_, dtype, shape))| dtype.byte_len(shape).is_some())
            .map(|(name, (_, dtype, shape))| Entry {
                name: name.into(),
                dtype,
                shape: shape.into(),
                begin: 0,
                end: 0,
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn what_we_write_reads_back_here_and_in_the_library(mut tensors in entries()) {
        let data = lay_out(&mut tensors).unwrap();
        let mut file = encode(&tensors).unwrap();
        prop_assert_eq!(file.len() as u64 % DATA_ALIGNMENT, 0);
        let header = Header::parse(&file[8..], data).unwrap();
        prop_assert_eq!(&header.metadata[0], &("format".to_owned(), "pt".to_owned()));
        let key = |t: &Entry| (t.begin, t.end, t.name.clone());
        let (mut left, mut right) = (header.tensors, tensors);
        left.sort_by_key(key);
        right.sort_by_key(key);
        prop_assert_eq!(left, right);
        file.resize(file.len() + data as usize, 0);
        prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
    }

    /// Damaged headers never panic, and what the library rejects is never accepted.
    #[test]
    fn never_looser_than_the_library(
        mut tensors in entries(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let data = lay_out(&mut tensors).unwrap();
        let mut file = encode(&tensors).unwrap();
        for (index, byte) in edits {
            let position = 8 + index.index(file.len() - 8);
            file[position] = byte;
        }
        let ours = Header::parse(&file[8..], data);
        file.resize(file.len() + data as usize, 0);
        if safetensors::SafeTensors::deserialize(&file).is_err() {
            prop_assert!(ours.is_err());
        }
    }
}
