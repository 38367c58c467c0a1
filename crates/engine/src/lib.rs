//! Runs plans on wgpu. The only crate that knows the GPU; everything here is asynchronous and never blocks a caller's
//! thread, so that the same code runs in a browser.

mod autotune;
#[cfg(not(target_arch = "wasm32"))]
mod barriers;
mod device;
mod kernel;
mod loader;
mod memory;
mod observer;
#[cfg(not(target_arch = "wasm32"))]
mod packed;
mod peaks;
mod pipeline_cache;
mod place;
mod poller;
mod portion;
mod precompile;
mod region;
mod report;
mod scratch;
mod session;
mod single;
#[cfg(not(target_arch = "wasm32"))]
mod spirv;
mod time;
mod timing;

pub use autotune::{Autotune, TuneBudget, signature, tune};
pub use device::{AdapterSummary, Device, DeviceOptions, adapters, driver_advice};
pub use memory::DeviceMemory;
pub use observer::{Observer, Silent};
pub use peaks::{Peaks, peaks};
pub use pulid_ops::DeviceKind;
pub use region::Region;
pub use report::{AdapterReport, CooperativeMatrices, adapter_reports};
pub use scratch::Scratch;
pub use session::{DeviceTensor, Session, StepProfile};
pub use single::{GUARD, SENTINEL, SingleRun, run_single, run_single_edited};
#[cfg(not(target_arch = "wasm32"))]
pub use spirv::{RuntimeChecks, Spirv, spirv};
pub use time::Instant;
pub use timing::{Timing, time_single};
