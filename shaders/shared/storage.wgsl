// How activations are stored. Kernels load into f32, compute in f32 and round once, when they store.

@if(f16) alias elem = f16;
@else alias elem = f32;
