//! Folders that `reshard` cut for the ranks of an engine: their files are no checkpoint, and every
//! rank has tensors of the same names. What they should be, only the manifest knows.

use globset::GlobMatcher;
use serde::Deserialize;

use crate::catalog::{CONFIG, INDEX, MANIFEST, MAX_MANIFEST};
use crate::error::{Error, Result};
use crate::io::Root;
use crate::io::root::check_name;
use crate::json;
use crate::model::parallel::{MAX_RANKS, RankOnly};
use crate::target::{Form, Target};

#[derive(Deserialize)]
struct Manifest {
    request: Request,
    files: Vec<File>,
}

/// The part of a request that tells the layout.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    reshard: Option<Reshard>,
}

#[derive(Debug, Deserialize)]
struct Reshard {
    target: String,
    target_file: Option<String>,
    tp: u32,
    pp: u32,
}

#[derive(Deserialize)]
struct File {
    path: String,
}

/// How a folder was cut.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The files of all ranks.
    files: Vec<String>,
    /// `None` for one that this version does not know.
    target: Option<Target>,
    tp: u32,
    pp: u32,
}

/// The files that a node needs which holds only some ranks.
pub(super) struct Share {
    ranks: RankOnly,
    own: GlobMatcher,
    /// Folders of the stages, if they have some.
    folders: Vec<(u32, String)>,
}

impl Cut {
    /// How the folder was cut that `request` made of these files; `None` if its files make sense
    /// without their ranks.
    pub(super) fn of(request: &Request, files: Vec<String>) -> Option<Self> {
        let reshard = request.reshard.as_ref()?;
        let target = match &reshard.target_file {
            Some(text) => Target::parse(text).ok(),
            None => Target::builtin(&reshard.target),
        };
        let by_rank = target.as_ref().is_none_or(|t| t.layout.form == Form::Ranks);
        let sound = files.iter().all(|n| check_name(n).is_ok());
        let cut = (reshard.pp > 1 || by_rank) && sound;
        cut.then_some(Self { files, target, tp: reshard.tp, pp: reshard.pp })
    }

    /// What the folder's own manifest says.
    pub(super) fn read(root: &Root) -> Result<Option<Self>> {
        let read = root.read(MANIFEST, MAX_MANIFEST);
        let bytes = read.or_else(|e| e.about_file().map(|_| None))?;
        let manifest = bytes.and_then(|b| json::manifest::<Manifest>(&b).ok());
        let files = |m: &Manifest| m.files.iter().map(|f| f.path.clone()).collect();
        Ok(manifest.and_then(|m| Self::of(&m.request, files(&m))))
    }

    /// Files with tensors, of all ranks.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// Small files that no rank can do without.
    pub(super) fn small_files(&self) -> Vec<String> {
        let mut names = vec![CONFIG.to_owned()];
        let indexed = self.target.as_ref().is_some_and(|t| t.layout.form == Form::Stages);
        for (_, folder) in self.folders() {
            if self.files.iter().any(|name| lies_in(name, &folder)) {
                names.push(format!("{folder}/{CONFIG}"));
                names.extend(indexed.then(|| format!("{folder}/{INDEX}")));
            }
        }
        names
    }

    fn folders(&self) -> Vec<(u32, String)> {
        let layout = self.target.as_ref().filter(|_| self.pp > 1).map(|t| &t.layout);
        let folder = |stage| Some((stage, layout?.folder(stage as usize)?));
        (0..self.pp.min(MAX_RANKS)).filter_map(folder).collect()
    }

    /// The share of these ranks. [`crate::error::Kind::Usage`] for ranks that there are none of.
    pub(super) fn share(&self, ranks: RankOnly) -> Result<Share> {
        ranks.check(self.tp, self.pp)?;
        let target = self.target.as_ref().ok_or_else(|| {
            Error::usage("--rank: the folder was cut for a target that is not known here")
        })?;
        let own = target.layout.paths_of(&ranks, self.pp > 1)?;
        Ok(Share { ranks, own, folders: self.folders() })
    }
}

fn lies_in(name: &str, folder: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl Share {
    /// Whether a file belongs to it. Where stages have folders of their own, a node may hold nothing
    /// beside them, so other small files do only if they are `present`.
    pub(super) fn has(&self, name: &str, present: bool) -> bool {
        if name.ends_with(".safetensors") {
            return self.own.is_match(name);
        }
        match self.folders.iter().find(|(_, folder)| lies_in(name, folder)) {
            Some((stage, _)) => self.ranks.pp.is_none_or(|own| own == *stage),
            None => present || self.folders.is_empty(),
        }
    }
}
