//! Functions by name.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Map, Plan, Record, Reduce, Step, Task};
use crate::{CurateError, Filter};

type Build<T> = Box<dyn Fn(&Value, &[Record]) -> Result<Box<T>, CurateError> + Send + Sync>;

/// The functions that plans may name. [`Registry::default`] has none, [`crate::registry`] has those of this crate.
#[derive(Default)]
pub struct Registry {
    maps: BTreeMap<&'static str, Build<dyn Map>>,
    reduces: BTreeMap<&'static str, Build<dyn Reduce>>,
    filters: BTreeMap<&'static str, Build<dyn Filter>>,
}

impl Registry {
    /// Adds a map, built from its parameters and the records of its side input.
    pub fn map<F>(&mut self, name: &'static str, build: F)
    where
        F: Fn(&Value, &[Record]) -> Result<Box<dyn Map>, CurateError> + Send + Sync + 'static,
    {
        self.maps.insert(name, Box::new(build));
    }

    /// Adds a reduce, built from its parameters.
    pub fn reduce<F>(&mut self, name: &'static str, build: F)
    where
        F: Fn(&Value) -> Result<Box<dyn Reduce>, CurateError> + Send + Sync + 'static,
    {
        self.reduces.insert(name, Box::new(move |parameters, _| build(parameters)));
    }

    /// Adds a map that is its own parameters.
    pub fn map_of<T: Map + DeserializeOwned + 'static>(&mut self, name: &'static str) {
        self.map(name, move |found, _| Ok(Box::new(parameters::<T>(name, found)?)));
    }

    /// Adds a reduce that is its own parameters.
    pub fn reduce_of<T: Reduce + DeserializeOwned + 'static>(&mut self, name: &'static str) {
        self.reduce(name, move |found| Ok(Box::new(parameters::<T>(name, found)?)));
    }

    /// Adds a filter, built from its parameters and the records of the side input of the stage's `filters` map.
    pub fn filter<F>(&mut self, name: &'static str, build: F)
    where
        F: Fn(&Value, &[Record]) -> Result<Box<dyn Filter>, CurateError> + Send + Sync + 'static,
    {
        self.filters.insert(name, Box::new(build));
    }

    /// Adds a filter that is its own thresholds.
    pub fn filter_of<T: Filter + DeserializeOwned + 'static>(&mut self, name: &'static str) {
        self.filter(name, move |found, _| Ok(Box::new(parameters::<T>(name, found)?)));
    }

    /// Builds the map of a step. The map `filters` is known to every registry: its parameter is a list of steps that
    /// name filters.
    ///
    /// # Errors
    /// A name that is not registered, parameters that do not fit.
    pub fn build_map(&self, step: &Step, side: &[Record]) -> Result<Box<dyn Map>, CurateError> {
        if step.name == crate::item::FILTERS {
            let steps: Vec<Step> = parameters(&step.name, &step.parameters)?;
            let build = |step: &Step| build(&self.filters, "filter", step, side);
            let filters = steps.iter().map(build).collect::<Result<Vec<_>, _>>()?;
            return Ok(Box::new(crate::item::Filters(filters)));
        }
        build(&self.maps, "map", step, side)
    }

    /// Builds every function that a plan names, without side inputs, and lets go of it.
    ///
    /// # Errors
    /// Those of building them: a name that is not registered, parameters that do not fit, a file that cannot be read.
    pub fn check(&self, plan: &Plan) -> Result<(), CurateError> {
        for task in &plan.tasks {
            let stages = match task {
                Task::Stage(stage) => std::slice::from_ref(stage),
                Task::Repeat(repeat) => &repeat.stages,
            };
            for stage in stages {
                for map in stage.inputs.iter().flat_map(|input| &input.maps) {
                    self.build_map(map, &[])?;
                }
                stage.reduce.iter().try_for_each(|reduce| self.build_reduce(reduce).map(|_| ()))?;
            }
        }
        Ok(())
    }

    /// Builds the reduce of a step.
    ///
    /// # Errors
    /// A name that is not registered, parameters that do not fit.
    pub fn build_reduce(&self, step: &Step) -> Result<Box<dyn Reduce>, CurateError> {
        build(&self.reduces, "reduce", step, &[])
    }
}

fn build<T: ?Sized>(
    functions: &BTreeMap<&'static str, Build<T>>,
    kind: &'static str,
    step: &Step,
    side: &[Record],
) -> Result<Box<T>, CurateError> {
    match functions.get(step.name.as_str()) {
        Some(build) => build(&step.parameters, side),
        None => {
            let known: Vec<_> = functions.keys().copied().collect();
            let problem = format!("no {kind} has this name; there are {}", known.join(", "));
            Err(CurateError::Function { name: step.name.clone(), problem })
        }
    }
}

/// Reads the parameters of a function.
///
/// # Errors
/// [`CurateError::Function`] with what does not fit.
pub fn parameters<T: DeserializeOwned>(name: &str, found: &Value) -> Result<T, CurateError> {
    serde_json::from_value(found.clone())
        .map_err(|error| CurateError::Function { name: name.to_owned(), problem: error.to_string() })
}
