//! What a process needs to do tasks: the functions, and what it has built of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::local::stage::read_all;
use crate::local::work;
use crate::pipeline::build_source;
use crate::plan::{Map, Reduce, Registry, Source, Step};

/// The file in a stage's folder that says what is to be done.
pub(super) const STAGE: &str = "stage.json";

/// A stage as data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageFile {
    pub(super) inputs: Vec<StageInput>,
    pub(super) tasks: Vec<TaskInput>,
    pub(super) reduce: Option<StageReduce>,
    pub(super) stop_at_broken: bool,
}

/// The maps of an input, and the files of its side input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageInput {
    pub(super) maps: Vec<Step>,
    pub(super) side: Vec<PathBuf>,
}

/// A reduce, and the slot of each partition.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageReduce {
    pub(super) step: Step,
    pub(super) slots: Vec<u64>,
}

/// What a map task reads, and the number of the input that it belongs to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskInput {
    pub(super) input: usize,
    pub(super) from: Origin,
}

/// A split of a source, or the part of a stage.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    Split { source: String, split: usize },
    Part(PathBuf),
}

/// The file with a source as data, in the folder of a run.
pub(super) fn source_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("source-{name}.json"))
}

/// Where a job's stage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The work folder, an absolute path.
    pub(super) work: String,
    /// What tells its work from other work, so that a folder of the same name on another disk is noticed.
    pub(super) fingerprint: String,
    /// The stage's folder, an absolute path.
    pub(super) folder: String,
}

/// Stages that a process remembers: functions may hold models that take long to load.
const REMEMBERED: usize = 4;

/// What a process does tasks with.
pub(super) struct Functions {
    registry: Registry,
    /// Name of this process, for files that are not yet whole.
    pub(super) name: String,
    /// Folder of this process, for sorting.
    pub(super) scratch: PathBuf,
    /// Bytes that the buffers of a task may hold.
    pub(super) budget: usize,
    opened: Mutex<Vec<Arc<Opened>>>,
    sources: Mutex<Vec<OpenSource>>,
}

/// A source of the run at a place.
struct OpenSource {
    place: Place,
    name: String,
    source: Arc<dyn Source>,
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Functions").field("name", &self.name).finish_non_exhaustive()
    }
}

type Maps = Arc<Vec<Box<dyn Map>>>;

/// A stage whose file is read.
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) file: StageFile,
    maps: Vec<Mutex<Option<Maps>>>,
}

impl Functions {
    pub(super) fn new(registry: Registry, name: String, scratch: PathBuf, budget: usize) -> Functions {
        Functions { registry, name, scratch, budget, opened: Mutex::default(), sources: Mutex::default() }
    }

    /// The functions of a process that does no tasks.
    pub(super) fn none() -> Functions {
        Functions::new(Registry::default(), String::new(), PathBuf::new(), 0)
    }

    /// Reads what is to be done at `place`.
    pub(super) fn open(&self, place: &Place) -> Result<Arc<Opened>, CurateError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = opened.iter().find(|found| found.place == *place) {
            return Ok(Arc::clone(found));
        }
        let work = Path::new(&place.work);
        if work::owner(work).as_deref() != Some(place.fingerprint.as_str()) {
            return Err(CurateError::Work {
                path: work.to_path_buf(),
                problem: format!("of the driver is not what executor `{}` sees there", self.name),
                hint:
                    "let `run.dir` lie on storage that the driver and all executors have under the same path"
                        .to_owned(),
            });
        }
        let file: StageFile = read_json(&Path::new(&place.folder).join(STAGE))?;
        let maps = file.inputs.iter().map(|_| Mutex::default()).collect();
        let stage = Arc::new(Opened { place: place.clone(), file, maps });
        if opened.len() == REMEMBERED {
            opened.remove(0);
        }
        opened.push(Arc::clone(&stage));
        Ok(stage)
    }

    /// The maps of a stage's input. Who comes while they are built waits for them.
    pub(super) fn maps(&self, stage: &Opened, input: usize) -> Result<Maps, CurateError> {
        let described = &stage.file.inputs[input];
        let mut built = stage.maps[input].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(maps) = &*built {
            return Ok(Arc::clone(maps));
        }
        let side = read_all(&described.side)?;
        let maps: Result<Vec<_>, _> =
            described.maps.iter().map(|step| self.registry.build_map(step, &side)).collect();
        Ok(Arc::clone(built.insert(Arc::new(maps?))))
    }

    pub(super) fn reduce(&self, step: &Step) -> Result<Box<dyn Reduce>, CurateError> {
        self.registry.build_reduce(step)
    }

    /// The source of this name.
    pub(super) fn source(&self, stage: &Opened, name: &str) -> Result<Arc<dyn Source>, CurateError> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Place { folder: String::new(), ..stage.place.clone() };
        if let Some(open) = sources.iter().find(|open| open.place == place && open.name == name) {
            return Ok(Arc::clone(&open.source));
        }
        let run = work::run_folder(Path::new(&place.work), &place.fingerprint);
        let step: Step = read_json(&source_file(&run, name))?;
        let source: Arc<dyn Source> = Arc::from(build_source(&step)?);
        // One plan at a time is the rule, and lists of files can be long.
        sources.retain(|open| open.place == place);
        sources.push(OpenSource { place, name: name.to_owned(), source: Arc::clone(&source) });
        Ok(source)
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CurateError> {
    let text = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
    serde_json::from_slice(&text).map_err(|error| CurateError::read(path, error))
}
