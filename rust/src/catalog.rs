//! Everything known about a checkpoint from headers, index and config, without tensor data.
//!
//! Shards are found through the index, not by their names. What is legal but odd becomes a
//! warning; what makes the checkpoint ambiguous or incomplete is an error.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::exec::hash::hex;
use crate::io::{Root, Stamp};
use crate::json::{self, Index};
use crate::pieces::Pieces;
use crate::shard_headers::{ReadHeader, read_headers};

/// Name of the index file.
pub const INDEX: &str = "model.safetensors.index.json";
/// Name of the model's configuration.
pub const CONFIG: &str = "config.json";
/// Name of lingconv's own record of what it wrote.
pub const MANIFEST: &str = "lingconv.manifest.json";
/// Longest index; Ling-1T's FP8 form has 10 MB.
pub(crate) const MAX_INDEX: u64 = 64 << 20;
/// Longest manifest that is read; that of Ling-1T for 32 ranks has some 30 MB.
pub(crate) const MAX_MANIFEST: u64 = 96 << 20;
/// Most tensors of a checkpoint that is converted, and of what becomes of it; Ling-1T's FP8 form has
/// 118,000, a 4-bit one of Kimi-K2 210,000.
pub(crate) const MAX_TENSORS: usize = 280_000;
/// Longest config.json.
pub(crate) const MAX_CONFIG: u64 = 16 << 20;

/// A shard of the checkpoint.
#[derive(Debug, Clone)]
pub struct Shard {
    /// File name relative to the folder.
    pub name: String,
    /// Size and times when its header was read.
    pub stamp: Stamp,
    /// First byte of tensor data in the file.
    pub data_start: u64,
    /// Prefix and header as they are in the file.
    pub raw_header: Arc<Vec<u8>>,
    /// Tensors are `first..first + count` of the catalog.
    pub first: usize,
    /// Number of tensors.
    pub count: usize,
}

/// A tensor and where it is.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Full name; shared with the files that it is copied to.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Box<[u64]>,
    /// Index of its shard.
    pub shard: u32,
    /// First byte in the shard file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A checkpoint folder, opened by headers only.
#[derive(Debug)]
pub struct Catalog {
    /// The folder.
    pub root: Root,
    /// Shards, sorted by name.
    pub shards: Vec<Shard>,
    /// Tensors: shard by shard, each in the order of its data.
    pub tensors: Vec<Tensor>,
    /// config.json, if there is one.
    pub config: Option<Value>,
    /// Legal oddities, for people.
    pub warnings: Vec<String>,
    /// Where the tensors really are, if the shards are those of the checkpoint that this folder
    /// was cut from.
    pub pieces: Option<Pieces>,
    /// config.json as text.
    pub config_text: Option<String>,
    /// The index as it is.
    pub raw_index: Option<Vec<u8>>,
    /// Positions of the tensors in the order of their names.
    by_name: Vec<u32>,
}

impl Catalog {
    /// Opens a checkpoint folder. Reads the index, config.json and the header of every shard.
    pub fn open(path: &Path) -> Result<Self> {
        let root = Root::open(path)?;
        let config_text = read_text(&root, CONFIG, MAX_CONFIG)?;
        let raw_index = root.read(INDEX, MAX_INDEX)?;
        let index = raw_index.as_deref().map(|raw| parse_index(&root, raw)).transpose()?;
        let names = match &index {
            Some(index) => shard_names(index, &root)?,
            None => shard_files(&root)?,
        };
        let headers = read_headers(&root, &names)?;
        let shards = names.into_iter().zip(headers).collect();
        let mut catalog = Self::assemble(root, config_text, shards)?;
        if let Some(index) = index {
            catalog.check_index(&index)?;
        }
        catalog.raw_index = raw_index;
        Ok(catalog)
    }

    /// A catalog of shards whose headers are known, in the order given; [`Self::raw_index`] and
    /// [`Self::pieces`] are left to the caller.
    pub fn assemble(
        root: Root,
        config_text: Option<String>,
        shards: Vec<(String, ReadHeader)>,
    ) -> Result<Self> {
        let config = config_text.as_deref();
        let config = config.map(|text| parse_object(&root, CONFIG, text.as_bytes())).transpose()?;
        let mut catalog = Self {
            root,
            shards: Vec::with_capacity(shards.len()),
            tensors: Vec::new(),
            config,
            warnings: Vec::new(),
            by_name: Vec::new(),
            pieces: None,
            config_text,
            raw_index: None,
        };
        for (name, read) in shards {
            catalog.add_shard(name, read);
        }
        catalog.check_unique()?;
        Ok(catalog)
    }

    /// Whether the checkpoint has an index.
    pub fn indexed(&self) -> bool {
        self.raw_index.is_some()
    }

    /// A file that holds tensor data: its name, and size and times when its header was read.
    pub fn file(&self, file: u32) -> (&str, Stamp) {
        match &self.pieces {
            None => (&self.shards[file as usize].name, self.shards[file as usize].stamp),
            Some(pieces) => (&pieces.files[file as usize].name, pieces.files[file as usize].stamp),
        }
    }

    /// Number of files that hold tensor data.
    pub fn file_count(&self) -> u32 {
        self.pieces.as_ref().map_or(self.shards.len(), |pieces| pieces.files.len()) as u32
    }

    /// Whether the shards are files, or were when a plan that is derived again was made.
    pub fn shards_are_files(&self) -> bool {
        self.pieces.as_ref().is_none_or(|p| p.files.is_empty())
    }

    /// Files that hold a tensor's data, for [`Self::file`].
    pub fn files_of(&self, tensor: u32) -> impl Iterator<Item = u32> {
        let shard = self.pieces.is_none().then(|| self.tensor(tensor).shard);
        let held = self.pieces.as_ref().and_then(|p| p.tensors.get(tensor as usize));
        let pieces = held.map(|held| held.pieces.iter());
        shard.into_iter().chain(pieces.into_iter().flatten().map(|p| p.file))
    }

    fn add_shard(&mut self, name: String, read: ReadHeader) {
        let data_start = read.raw.len() as u64;
        let shard = self.shards.len() as u32;
        let (first, count) = (self.tensors.len(), read.header.tensors.len());
        self.warnings.extend(read.header.warnings.into_iter().map(|w| format!("{name}: {w}")));
        self.tensors.extend(read.header.tensors.into_iter().map(|t| Tensor {
            offset: data_start + t.begin,
            bytes: t.end - t.begin,
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            shard,
        }));
        let (stamp, raw_header) = (read.stamp, Arc::new(read.raw));
        self.shards.push(Shard { name, stamp, data_start, raw_header, first, count });
    }

    fn check_unique(&mut self) -> Result<()> {
        let mut by_name: Vec<u32> = (0..self.tensors.len() as u32).collect();
        by_name.sort_unstable_by_key(|i| &*self.tensors[*i as usize].name);
        let twice = by_name.windows(2).find(|w| self.tensor(w[0]).name == self.tensor(w[1]).name);
        if let Some(&[first, second]) = twice {
            let name = &*self.tensor(first).name;
            let (one, other) = (self.shard_of(first), self.shard_of(second));
            return Err(Error::invalid(format!("tensor is also in {}", one.name))
                .tensor(name)
                .at(self.root.path().join(&other.name))
                .hint(
                    "shards of two downloads are mixed; download one revision into an empty folder",
                ));
        }
        self.by_name = by_name;
        Ok(())
    }

    fn check_index(&mut self, index: &Index) -> Result<()> {
        let mut problems = Vec::new();
        for (name, file) in index.tensors() {
            match self.find(name) {
                None => problems.push(format!("{name}: in no file, the index says {file}")),
                Some(i) if self.shard_of(i).name != file => {
                    let held = &self.shard_of(i).name;
                    problems.push(format!("{name}: in {held}, the index says {file}"));
                }
                Some(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(Error::invalid("the index does not fit the shards")
                .at(self.root.path().join(INDEX))
                .details(problems)
                .hint("index and shards are of different revisions, or a download is incomplete; download again"));
        }
        if index.len() < self.tensors.len() {
            let count = self.tensors.len() - index.len();
            self.warnings.push(format!("{count} tensors are in shards but not in the index"));
        }
        let total: u64 = self.tensors.iter().map(|t| t.bytes).sum();
        if let Some(claimed) = index.total_size
            && claimed != total
        {
            self.warnings.push(format!(
                "{INDEX}: total_size says {claimed}, the tensors have {total} bytes"
            ));
        }
        Ok(())
    }

    /// Position of a tensor by name.
    pub fn find(&self, name: &str) -> Option<u32> {
        let found = self.by_name.binary_search_by_key(&name, |i| &*self.tensors[*i as usize].name);
        found.ok().map(|at| self.by_name[at])
    }

    /// A tensor by position.
    pub fn tensor(&self, index: u32) -> &Tensor {
        &self.tensors[index as usize]
    }

    /// The shard that holds a tensor.
    pub fn shard_of(&self, tensor: u32) -> &Shard {
        &self.shards[self.tensors[tensor as usize].shard as usize]
    }

    /// Path of a shard for messages.
    pub fn path_of(&self, tensor: u32) -> std::path::PathBuf {
        let file = self.files_of(tensor).next();
        self.root.path().join(file.map_or("", |f| self.file(f).0))
    }

    /// Bytes of tensor data.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bytes of all shard files.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.stamp.size).sum()
    }

    /// SHA-256 over names, sizes and headers of all shards and over config.json: the same on every
    /// machine that holds a copy of the checkpoint, whatever its folder is called.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for shard in &self.shards {
            hash.update(format!("{}\0{}\0", shard.name, shard.stamp.size));
            hash.update(Sha256::digest(&*shard.raw_header));
        }
        hash.update(self.config.as_ref().map(Value::to_string).unwrap_or_default());
        hex(&hash.finalize())
    }
}

/// Names of the shards, all of which must be there.
fn shard_names(index: &Index, root: &Root) -> Result<Vec<String>> {
    for name in index.files() {
        crate::io::root::check_name(name).map_err(|e| e.at(root.path().join(INDEX)))?;
    }
    let mut names = index.files().to_vec();
    names.sort_unstable();
    let missing: Vec<String> =
        names.iter().filter(|name| matches!(root.resolve(name), Ok(None))).cloned().collect();
    match missing.first() {
        None => Ok(names),
        Some(first) => Err(Error::invalid(format!(
            "{} of {} shards that the index names are missing",
            missing.len(),
            names.len()
        ))
        .at(root.path().join(first))
        .details(missing)
        .hint("download the missing files")),
    }
}

fn parse_index(root: &Root, raw: &[u8]) -> Result<Index> {
    let index = Index::parse(raw)
        .map_err(|e| e.at(root.path().join(INDEX)).hint("download the index again"))?;
    if index.is_empty() {
        return Err(Error::invalid("the index names no tensors").at(root.path().join(INDEX)));
    }
    Ok(index)
}

fn shard_files(root: &Root) -> Result<Vec<String>> {
    let mut names = root.names(0)?;
    names.retain(|name| Path::new(name).extension().is_some_and(|e| e == "safetensors"));
    if names.is_empty() {
        return Err(Error::invalid("no safetensors files")
            .at(root.path())
            .hint("name the folder that holds model.safetensors.index.json and the shards"));
    }
    Ok(names)
}

fn read_text(root: &Root, name: &str, limit: u64) -> Result<Option<String>> {
    let Some(bytes) = root.read(name, limit)? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some)
        .map_err(|_| Error::invalid("malformed JSON: not UTF-8").at(root.path().join(name)))
}

/// Reads a JSON object; `None` if the file does not exist.
pub fn read_json(root: &Root, name: &str, limit: u64) -> Result<Option<Value>> {
    root.read(name, limit)?.map(|bytes| parse_object(root, name, &bytes)).transpose()
}

fn parse_object(root: &Root, name: &str, bytes: &[u8]) -> Result<Value> {
    match json::value(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::invalid("not a JSON object").at(root.path().join(name))),
        Err(e) => Err(e.at(root.path().join(name))),
    }
}
