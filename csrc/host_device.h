// Marks functions that are compiled for both host and GPU.
#ifndef ERWIN_HOST_DEVICE_H_
#define ERWIN_HOST_DEVICE_H_

#if defined(__CUDACC__)
#define ERWIN_HOST_DEVICE __host__ __device__
#else
#define ERWIN_HOST_DEVICE
#endif

#endif  // ERWIN_HOST_DEVICE_H_
