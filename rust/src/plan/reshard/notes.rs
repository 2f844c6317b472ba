//! What the user gets to read: the lines that start the engine, and `LINGCONV.md`.

use super::{Context, Reshard};
use crate::io::link::Link;
use crate::model::parallel::stages;
use crate::plan::sidecars;
use crate::target::{Form, Split};

/// What `LINGCONV.md` says of experts in another order than the original's.
const REORDERED: &str = "\nThe experts of each layer lie in the order of the map that \
    `lingconv.manifest.json` holds under request.reshard.experts; \
    `lingconv reshard --target hf` puts the original together again.";

impl Context<'_> {
    /// Lines that start the engine; `{out}` stands for the output folder.
    pub(super) fn launch(&self) -> Vec<String> {
        let own = stages(self.model.layers(), self.ask.pp, &[], self.target.layout.remainder);
        let layers: Vec<u32> = self.stages.iter().map(|s| s.end - s.start).collect();
        let uneven = layers.windows(2).any(|w| w[0] != w[1]);
        let partition = uneven || own.ok().as_deref() != Some(&self.stages);
        let Reshard { tp, pp, ep, .. } = *self.ask;
        let written: Vec<u32> = (0..pp).filter(|stage| self.ask.has_stage(*stage)).collect();
        let partition = partition.then_some(layers.as_slice());
        self.target.launch(&Split { tp, pp, ep, partition, written: &written })
    }

    /// `LINGCONV.md`: what was done, and how to start the engine.
    pub(super) fn notes(&self) -> (String, String) {
        let Reshard { tp, pp, ep, .. } = self.ask;
        let layers: Vec<String> =
            self.stages.iter().map(|s| format!("{} to {}", s.start, s.end - 1)).collect();
        let apart = self.stage().and(self.folder(0)).is_some();
        let text = format!(
            "# Cut for {target}\n\n\
             Written by lingconv: tensor parallel {tp}, pipeline parallel {pp} (layers {layers}), \
             expert parallel {ep}.{order}\n{what}{encoded}{nodes}\n\
             ```sh\n{launch}\n```\n\n\
             Check the files with `lingconv verify`. `lingconv.manifest.json` says where every \
             tensor came from;\n`lingconv reshard --target hf` makes the original's files of \
             these.\n",
            target = self.target.name,
            layers = layers.join(", "),
            order = if self.experts.is_some() { REORDERED } else { "" },
            what = self.what(),
            encoded = match self.ask.format {
                Some(_) => format!("Weights were encoded to FP8, {}.\n", self.request.dialect),
                None => String::new(),
            },
            nodes = if apart {
                "Every stage has a folder of its own; a node needs no other.\n"
            } else {
                ""
            },
            launch = self.launch().join("\n").replace("{out}", "."),
        );
        (sidecars::NOTES.to_owned(), text)
    }

    fn what(&self) -> &'static str {
        match (self.target.layout.form, self.ask.link) {
            (Form::Ranks, _) => {
                "Every rank reads only its own files; they fit no other layout and no other engine.\n"
            }
            (Form::Stages, Link::Copy) => {
                "Tensors keep their names; a stage has those of its layers.\n"
            }
            (Form::Stages, _) => {
                "Tensors keep their names; a stage has those of its layers. Files that lie in one \
                 stage are the\noriginal's own, linked where the file system could do it: do not \
                 change them in place.\n"
            }
        }
    }
}
