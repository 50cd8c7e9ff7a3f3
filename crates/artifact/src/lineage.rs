//! Where an artifact came from: its inputs, their inputs, back to what lies outside the run.

use crate::{Artifact, InputRef, MANIFEST, Manifest, Result, fsutil};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// An artifact, or an input from outside the run, with all that went into it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lineage {
    /// The part it plays for the artifact above it; for the first one, its stage.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Its manifest, if it is an artifact in the same run folder.
    pub manifest: Option<Manifest>,
    /// Whether it stands further up already; its inputs are listed there.
    pub repeated: bool,
    /// What it was made from.
    pub inputs: Vec<Lineage>,
}

/// Follows the inputs of the artifact in a folder through the other stages of its run folder.
///
/// # Errors
/// The artifact itself cannot be opened. Inputs that are not in the run folder, or damaged there, are leaves.
pub fn why(artifact_dir: &Path) -> Result<Lineage> {
    let artifact = Artifact::open(artifact_dir, None)?;
    let full = std::path::absolute(artifact_dir).unwrap_or_else(|_| artifact_dir.to_owned());
    let mut siblings = BTreeMap::new();
    if let Some(run) = full.parent() {
        for (path, is_dir) in fsutil::entries(run)? {
            if is_dir
                && fsutil::exists(&path.join(MANIFEST))?
                && let Ok(sibling) = Artifact::open(&path, None)
            {
                siblings.entry(sibling.id().to_owned()).or_insert_with(|| sibling.manifest().clone());
            }
        }
    }
    siblings.insert(artifact.id().to_owned(), artifact.manifest().clone());
    Ok(follow(&artifact.as_input(&artifact.manifest().stage), &siblings, &mut BTreeSet::new()))
}

fn follow(input: &InputRef, known: &BTreeMap<String, Manifest>, seen: &mut BTreeSet<String>) -> Lineage {
    let manifest = known.get(&input.id).cloned();
    let repeated = manifest.is_some() && !seen.insert(input.id.clone());
    let inputs = match &manifest {
        Some(manifest) if !repeated => manifest.inputs.iter().map(|i| follow(i, known, seen)).collect(),
        _ => Vec::new(),
    };
    let InputRef { name, kind, id } = input.clone();
    Lineage { name, kind, id, manifest, repeated, inputs }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line(f, 0)
    }
}

impl Lineage {
    fn line(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "{:indent$}{} [{}] {}", "", self.name, self.kind, self.id, indent = 2 * depth)?;
        match &self.manifest {
            None => writeln!(f, "  (from outside the run)")?,
            Some(_) if self.repeated => writeln!(f, "  (see above)")?,
            Some(m) => {
                let (files, bytes, wall) = (m.files.len(), m.total_bytes(), m.provenance.wall_seconds);
                writeln!(f, "  stage `{}`, {files} files, {bytes} bytes, {wall:.1} s", m.stage)?;
            }
        }
        self.inputs.iter().try_for_each(|input| input.line(f, depth + 1))
    }
}
