//! The shape of a plan.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::CurateError;

/// A function by its name, with its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name in the registry.
    pub name: String,
    /// What the function is built from.
    #[serde(default = "no_parameters")]
    pub parameters: Value,
}

fn no_parameters() -> Value {
    Value::Object(serde_json::Map::new())
}

impl Step {
    /// A function without parameters.
    pub fn new(name: &str) -> Step {
        Step { name: name.to_owned(), parameters: no_parameters() }
    }

    /// A function with parameters.
    ///
    /// # Errors
    /// Parameters that JSON cannot hold.
    pub fn with(name: &str, parameters: &impl Serialize) -> Result<Step, CurateError> {
        let parameters = serde_json::to_value(parameters)
            .map_err(|error| CurateError::Function { name: name.to_owned(), problem: error.to_string() })?;
        Ok(Step { name: name.to_owned(), parameters })
    }
}

/// Records that a stage reads, and what is done to each first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// A source, a task before this one, or, inside a [`Repeat`], that repeat: its state before the round.
    pub from: String,
    /// Maps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<Step>,
    /// A task all of whose records, in sorted order, every map gets when it is built. It must be small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
}

impl Input {
    /// Records as they are.
    pub fn all(from: &str) -> Input {
        Input { from: from.to_owned(), maps: Vec::new(), side: None }
    }

    /// Records sent through maps.
    pub fn through(from: &str, maps: Vec<Step>) -> Input {
        Input { from: from.to_owned(), maps, side: None }
    }
}

/// Inputs, maps, and perhaps a shuffle and a reduce.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Unique in the plan: lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// Read one after another; their records are put together.
    pub inputs: Vec<Input>,
    /// Shuffles by key and reduces each key. Without it, the stage is what its maps emit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce: Option<Step>,
}

/// Stages that are run again and again until a round gives the records that it began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// Unique in the plan. Outside it means the final state, inside it the state before the round.
    pub name: String,
    /// The task whose records are the first state.
    pub start: String,
    /// One round; the records of its last stage are the next state.
    pub stages: Vec<Stage>,
}

/// A stage or a loop of stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Done once.
    Stage(Stage),
    /// Done until nothing changes.
    Repeat(Repeat),
}

impl Task {
    /// The name by which others read it.
    pub fn name(&self) -> &str {
        match self {
            Task::Stage(stage) => &stage.name,
            Task::Repeat(repeat) => &repeat.name,
        }
    }

    /// Names of everything it reads.
    pub fn reads(&self) -> Vec<&str> {
        let stages = match self {
            Task::Stage(stage) => std::slice::from_ref(stage),
            Task::Repeat(repeat) => &repeat.stages,
        };
        let inputs = stages.iter().flat_map(|stage| &stage.inputs);
        let mut names: Vec<_> = inputs.flat_map(|i| [Some(&i.from), i.side.as_ref()]).flatten().collect();
        if let Task::Repeat(repeat) = self {
            names.push(&repeat.start);
        }
        names.into_iter().map(String::as_str).collect()
    }
}

/// What is to be done, in order. The last task is the result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names of the sources that a run must bring.
    pub sources: Vec<String>,
    /// Each reads sources and tasks before it.
    pub tasks: Vec<Task>,
}

impl Plan {
    /// Appends a stage.
    pub fn stage(&mut self, name: &str, inputs: Vec<Input>, reduce: Option<Step>) {
        self.tasks.push(Task::Stage(Stage { name: name.to_owned(), inputs, reduce }));
    }

    /// Checks that names are unique and that everything read comes before.
    ///
    /// # Errors
    /// [`CurateError::Plan`] with the name.
    pub fn validate(&self) -> Result<(), CurateError> {
        let mut known = BTreeSet::new();
        for name in &self.sources {
            declare(&mut known, name)?;
        }
        for task in &self.tasks {
            match task {
                Task::Stage(stage) => check(stage, &known)?,
                Task::Repeat(repeat) => {
                    let mut inside = known.clone();
                    require(&inside, &repeat.start, &repeat.name)?;
                    declare(&mut inside, &repeat.name)?;
                    for stage in &repeat.stages {
                        check(stage, &inside)?;
                        declare(&mut inside, &stage.name)?;
                    }
                    if repeat.stages.is_empty() {
                        return Err(plan_error(&repeat.name, "has no stages".to_owned()));
                    }
                }
            }
            declare(&mut known, task.name())?;
        }
        if self.tasks.is_empty() {
            return Err(plan_error("plan", "has no tasks".to_owned()));
        }
        Ok(())
    }
}

fn check(stage: &Stage, known: &BTreeSet<String>) -> Result<(), CurateError> {
    for input in &stage.inputs {
        require(known, &input.from, &stage.name)?;
        if let Some(side) = &input.side {
            require(known, side, &stage.name)?;
        }
    }
    Ok(())
}

fn require(known: &BTreeSet<String>, name: &str, reader: &str) -> Result<(), CurateError> {
    if known.contains(name) {
        return Ok(());
    }
    Err(plan_error(reader, format!("reads `{name}`, which no source or task before it is called")))
}

fn declare(known: &mut BTreeSet<String>, name: &str) -> Result<(), CurateError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(fits) {
        let problem = "is not a name: lower-case letters, digits, `-` and `_` are allowed".to_owned();
        return Err(plan_error(name, problem));
    }
    if !known.insert(name.to_owned()) {
        return Err(plan_error(name, "is the name of two".to_owned()));
    }
    Ok(())
}

fn plan_error(name: &str, problem: String) -> CurateError {
    CurateError::Plan { name: name.to_owned(), problem }
}

/// One line a stage: `name <- input | map | map, input => reduce`.
impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for task in &self.tasks {
            match task {
                Task::Stage(stage) => writeln!(out, "{stage}")?,
                Task::Repeat(repeat) => {
                    writeln!(out, "{} <- {}, until nothing changes:", repeat.name, repeat.start)?;
                    for stage in &repeat.stages {
                        writeln!(out, "  {stage}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} <- ", self.name)?;
        for (at, input) in self.inputs.iter().enumerate() {
            write!(out, "{}{}", if at > 0 { ", " } else { "" }, input.from)?;
            for map in &input.maps {
                write!(out, " | {}", map.name)?;
            }
            if let Some(side) = &input.side {
                write!(out, " (beside {side})")?;
            }
        }
        match &self.reduce {
            Some(reduce) => write!(out, " => {}", reduce.name),
            None => Ok(()),
        }
    }
}
