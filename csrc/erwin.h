// The C ABI of the native kernels.
//
// Conventions, for every entry point on every device:
//   * arguments are raw pointers and sizes; the library links neither libtorch nor Python, and no exception leaves it;
//   * the caller allocates outputs and workspace, contiguous and on the context's device; between calls the library
//     keeps nothing for a caller except an `erwin_found`;
//   * arrays have the alignment of their elements; a workspace on the host may start at any address, one on a device
//     starts at a multiple of ERWIN_DEVICE_ALIGNMENT bytes; an array may be NULL only if it has no elements, or if a
//     comment below says so;
//   * clouds are given by `ptr` [clouds + 1], ascending from 0: cloud i owns rows ptr[i] .. ptr[i + 1] - 1 of `pos`;
//   * indices are int64, positions are float32 or float64 (`erwin_dtype`), finite, row-major [points, dim];
//   * the result is the same bits for every number of threads and, except for attention, on every device;
//   * sizes, offsets, configurations and NULL pointers that break a rule give ERWIN_INVALID_ARGUMENT; the host
//     checks no values in the memory of a device, and nothing checks the size of the memory behind a pointer;
//   * the return value is an `erwin_status`; if it is not ERWIN_OK, the outputs are unspecified, but later calls work.
#ifndef ERWIN_H_
#define ERWIN_H_

#include <stdint.h>

#if defined(_WIN32)
#define ERWIN_API __declspec(dllexport)
#else
#define ERWIN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ERWIN_ABI_VERSION 8
#define ERWIN_MAX_LEVELS 16
#define ERWIN_MAX_DIM 16777216  // coordinates of a point
#define ERWIN_DEVICE_ALIGNMENT 64  // bytes

typedef enum {
  ERWIN_OK = 0,
  ERWIN_INVALID_ARGUMENT = 1,  // a size, level count or configuration out of range
  ERWIN_UNSUPPORTED = 2,       // valid, but not in this build (another device, a periodic box)
  ERWIN_WORKSPACE_TOO_SMALL = 3,
  ERWIN_OUT_OF_MEMORY = 4,
  ERWIN_INTERNAL_ERROR = 5,
  ERWIN_INTERRUPTED = 6,  // the caller asked for it, see `erwin_interrupted`
} erwin_status;

typedef enum { ERWIN_FLOAT32 = 0, ERWIN_FLOAT64 = 1, ERWIN_BFLOAT16 = 2 } erwin_dtype;

typedef enum { ERWIN_BALANCED = 0, ERWIN_PERFECT = 1 } erwin_layout_kind;

#define ERWIN_HOST (-1)

// A function that trees and searches on the host call about every 20 ms, on the thread that made the call. If it does
// not return 0, the call ends within a fraction of a second, with ERWIN_INTERRUPTED.
typedef int32_t (*erwin_interrupted)(void);

// Where and how a call runs.
typedef struct {
  int32_t device;       // ERWIN_HOST or the ordinal of a CUDA device
  int32_t num_threads;  // host threads, >= 1; with 1, no other thread is started or woken (safe in forked processes)
  void* stream;         // CUDA stream, NULL on the host
  erwin_interrupted interrupted;  // NULL: the call is never interrupted
} erwin_context;

// The static configuration of a tree. Level 0 holds the points, level l + 1 pools `strides[l]` rows of level l.
typedef struct {
  int32_t kind;    // erwin_layout_kind
  int32_t levels;  // 1 .. ERWIN_MAX_LEVELS
  int64_t ball_sizes[ERWIN_MAX_LEVELS];
  int64_t strides[ERWIN_MAX_LEVELS];  // only the first levels - 1 are read
} erwin_layout;

ERWIN_API int32_t erwin_abi_version(void);

// CUDA's message for the last ERWIN_INTERNAL_ERROR of the calling thread on a device; empty if there was none.
ERWIN_API const char* erwin_last_error(void);

ERWIN_API int32_t erwin_has_openmp(void);
ERWIN_API int32_t erwin_has_cuda(void);

// Sets `finite` to 1 if none of `count` values, float32 or float64, is infinite or NaN, else to 0. Host pointers, one
// thread; `values` may start at any address.
ERWIN_API int32_t erwin_is_finite(int32_t dtype, const void* values, int64_t count, int32_t* finite);

// Checks permutations. `perm` [rows] is divided into runs of `lengths` [runs] rows, which add up to `rows`; every run
// must hold each number below its length exactly once. `wrong`: the first run that does not, or -1. `seen`: scratch
// memory of one bit per row of the longest run, rounded up to bytes. Host pointers, one thread.
ERWIN_API int32_t erwin_permutations(const int64_t* perm, int64_t rows, const int64_t* lengths, int64_t runs,
                                     uint8_t* seen, int64_t* wrong);

// ---- Tree -----------------------------------------------------------------------------------------------------------

// `rows` [clouds, levels]: the rows of every cloud on every level. `total` [2, levels]: the rows, and the balls, of all
// clouds together on every level. Host pointers on every device.
ERWIN_API int32_t erwin_tree_sizes(const erwin_layout* layout, const int64_t* ptr, int64_t clouds, int64_t* rows,
                                   int64_t* total);

// `ball_len[l]` [balls of level l]: the rows of each ball. `group_len[l]` [rows of level l + 1]: the children of each
// pooled row. Clouds come one after the other. If `group_len[l]` is NULL, it is not computed. Host pointers on every
// device.
ERWIN_API int32_t erwin_tree_tables(const erwin_layout* layout, const int64_t* ptr, int64_t clouds,
                                    int64_t* const* ball_len, int64_t* const* group_len);

ERWIN_API int32_t erwin_tree_workspace(const erwin_layout* layout, int32_t dtype, const int64_t* ptr, int64_t clouds,
                                       int64_t dim, int64_t* bytes);

// `perm` [rows of level 0]: the point in each slot, counted in its cloud. `mask` (perfect layout; may be NULL): 0 if a
// slot repeats the point before it. `rotation` [dim, dim] in `dtype`, or NULL if no rotated trees are wanted. With a
// rotation, `perm_rot[l]` [rows of level l]: the row of level l, counted in its cloud, at each place of the rotated
// tree; ascending inside a ball. For the host only; CUDA devices have erwin_tree_build_device.
ERWIN_API int32_t erwin_tree_build(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                   const void* pos, const int64_t* ptr, int64_t clouds, int64_t dim,
                                   const void* rotation, void* workspace, int64_t workspace_bytes, int64_t* perm,
                                   uint8_t* mask, int64_t* const* perm_rot);

// Builds trees on a device without waiting for it. `ptr` is in the device's memory, so the host passes bounds of sizes.
#define ERWIN_DEVICE_MAX_DIM 8

typedef struct {
  int64_t clouds;                   // exact
  int64_t points;                   // rows of `pos`
  int64_t largest;                  // points of the largest cloud
  int64_t rows[ERWIN_MAX_LEVELS];   // rows of a level for which the results have room, all clouds together
} erwin_tree_bounds;

ERWIN_API int32_t erwin_tree_device_workspace(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                              int64_t dim, const erwin_tree_bounds* bounds, int32_t rotated,
                                              int64_t* bytes);

// Like erwin_tree_build. Entries of the results after the rows of all clouds become 0. `rotation` and the array of
// pointers `perm_rot` are in the host's memory.
ERWIN_API int32_t erwin_tree_build_device(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                          const void* pos, const int64_t* ptr, int64_t dim,
                                          const erwin_tree_bounds* bounds, const void* rotation, void* workspace,
                                          int64_t workspace_bytes, int64_t* perm, uint8_t* mask,
                                          int64_t* const* perm_rot);

// ---- Neighbours -----------------------------------------------------------------------------------------------------
// Exact searches through a balanced tree whose order `perm` was built before with the same `layout`. A `perm` that is
// not a permutation of the points of every cloud is an invalid argument. Distances are sums of squared coordinate
// differences in `dtype`, added in the order of the axes. Neighbours are sorted by distance, then by index. Targets are
// in ascending order; sources and targets are rows of the whole batch. `box` is reserved for periodic boxes ([dim] edge
// lengths) and must be NULL.
//
// Targets are the queries: the points whose neighbours are searched. Sources are the points of the tree. If `queries`
// is NULL, the queries are these same points, and `loop` tells whether a point is its own neighbour; otherwise `loop`
// is not read. A tree of the queries makes the search fast, but has no effect on the result.
//
// `ptr` is a host pointer on every device. Calls on a CUDA device return before their work is done. If only a kernel
// can see that an argument is invalid or a position is not finite, the status is ERWIN_OK, and the kernel sets the
// first int32_t of `workspace` to 1; otherwise it is 0.

// Points with a balanced tree, as many clouds as in the tree that is searched. The neighbours of the points of cloud i
// are in cloud i.
typedef struct {
  const erwin_layout* layout;
  const void* pos;      // [points, dim] in the call's dtype
  const int64_t* ptr;   // [clouds + 1], a host pointer on every device
  const int64_t* perm;  // [points]: the order of the tree
} erwin_queries;

// Reads no arrays but offsets, of `queries` too.
ERWIN_API int32_t erwin_neighbors_workspace(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                            const int64_t* ptr, int64_t clouds, int64_t dim,
                                            const erwin_queries* queries, int64_t* bytes);

// Every target gets k edges, or one for each possible neighbour in its cloud if these are fewer. `source` and `target`
// have room for the edges of all targets.
ERWIN_API int32_t erwin_knn(const erwin_context* context, const erwin_layout* layout, int32_t dtype, const void* pos,
                            const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm,
                            const erwin_queries* queries, const void* box, int64_t k, int32_t loop, void* workspace,
                            int64_t workspace_bytes, int64_t* source, int64_t* target);

// The result of a radius search on the host, in memory of the library: about 4 bytes per edge and 16 per query.
typedef struct erwin_found erwin_found;
ERWIN_API void erwin_found_free(erwin_found* found);  // `found` may be NULL

// First pass. `degree` [queries]: the number of neighbours with squared distance <= radius * radius (radius >= 0). If
// `cap` >= 0, only the nearest `cap` of them count, the same ones as in a k-NN search. On the host the edges are kept
// in `found`, which the caller must free; on a device `found` becomes NULL, and `workspace` keeps the search structure.
// After an error `found` is NULL. If there are certainly too many edges for the memory, the call returns
// ERWIN_OUT_OF_MEMORY at once.
ERWIN_API int32_t erwin_radius_count(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                     const void* pos, const int64_t* ptr, int64_t clouds, int64_t dim,
                                     const int64_t* perm, const erwin_queries* queries, const void* box, double radius,
                                     int64_t cap, int32_t loop, void* workspace, int64_t workspace_bytes,
                                     int64_t* degree, erwin_found** found);

// Second pass, after erwin_radius_count with the same arguments: writes the `degree[i]` edges of every query. A
// `degree` that the first pass did not give is an invalid argument. Then the host writes no edges; a device writes none
// if a degree is negative, above `cap` or above the number of points. The host reads `found` and not `workspace`.
ERWIN_API int32_t erwin_radius_fill(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                    const void* pos, const int64_t* ptr, int64_t clouds, int64_t dim,
                                    const int64_t* perm, const erwin_queries* queries, const void* box, double radius,
                                    int64_t cap, int32_t loop, void* workspace, int64_t workspace_bytes,
                                    const int64_t* degree, const erwin_found* found, int64_t* source, int64_t* target);

// ---- The instruction set of the host kernels ------------------------------------------------------------------------
typedef enum { ERWIN_CPU_BASELINE = 0, ERWIN_CPU_AVX2 = 1, ERWIN_CPU_AVX512 = 2 } erwin_cpu_isa_kind;

// The widest instruction set that both this build and this machine have.
ERWIN_API int32_t erwin_cpu_isa(void);

// ---- Ball attention -------------------------------------------------------------------------------------------------
// For rows i, j of one ball and head h: out_i = sum_j softmax_j(scale * q_i.k_j + sigma_h * |p_i - p_j|) v_j, computed
// in float32. The bits depend on the instruction set.

// A tensor [rows, heads, channels]. Channels are contiguous; strides are in elements.
typedef struct {
  void* data;
  int64_t row_stride;
  int64_t head_stride;
} erwin_heads;

typedef struct {
  int32_t isa;        // erwin_cpu_isa_kind, at most erwin_cpu_isa(); -1: the widest
  int32_t dtype;      // of every erwin_heads: ERWIN_FLOAT32 or ERWIN_BFLOAT16
  int32_t pos_dtype;  // ERWIN_FLOAT32 or ERWIN_FLOAT64
  float scale;
  int64_t rows, heads, channels, dim, balls;  // heads, channels and dim at most 2^24
  const int64_t* ball_len;  // [balls], not negative, with the sum `rows`; a ball is some consecutive places
  const int64_t* perm;      // [rows]: the row at every place, a permutation; NULL: row i is at place i
  const void* pos;          // [rows, dim] in pos_dtype
  const float* sigma;       // [heads]
  erwin_heads q, k, v;
} erwin_attention;

// `backward`: 0 for a forward call, 1 for a backward call, 2 for a backward call with a gradient of positions. Reads
// `ball_len`, and whether `perm` is NULL, but no other array.
ERWIN_API int32_t erwin_attention_workspace(const erwin_context* context, const erwin_attention* attention,
                                            int32_t backward, int64_t* bytes);

// `lse` [rows, heads]: the base-2 logarithm of the sum of 2^score, where scores are in units of log(2). The backward
// call reads it.
ERWIN_API int32_t erwin_attention_forward(const erwin_context* context, const erwin_attention* attention,
                                          void* workspace, int64_t workspace_bytes, const erwin_heads* out, float* lse);

// Gradients of q, k, v, of `sigma` [heads] and, unless NULL, of `pos` [rows, dim] (float32; zero between coincident
// points). `out` and `lse` are those of the forward call.
ERWIN_API int32_t erwin_attention_backward(const erwin_context* context, const erwin_attention* attention,
                                           void* workspace, int64_t workspace_bytes, const erwin_heads* out,
                                           const float* lse, const erwin_heads* grad_out, const erwin_heads* grad_q,
                                           const erwin_heads* grad_k, const erwin_heads* grad_v, float* grad_sigma,
                                           float* grad_pos);

// ---- Message passing ------------------------------------------------------------------------------------------------
// The message along an edge from node j to node i is GELU(source_j + target_i + weight (pos_j - pos_i)), normalised
// over the channels (LayerNorm). Every node gets the mean over the edges into it. Everything is computed in float32.
// The bits depend on the instruction set, but the results for a cloud do not depend on other clouds. The conventions
// above hold here too.

// Sorts items by their keys, 0 <= key < groups; any other key is an invalid argument. `order` [count] and `ptr` [groups
// + 1]: the items of group g are order[ptr[g]] .. order[ptr[g + 1] - 1], in ascending order. Host pointers.
ERWIN_API int32_t erwin_group(const int64_t* key, int64_t count, int64_t groups, int64_t* ptr, int64_t* order);

#define ERWIN_ROW 16  // rows of channels are padded with zeros to a multiple of this

typedef struct {
  int32_t isa;                  // erwin_cpu_isa_kind, at most erwin_cpu_isa(); -1: the widest
  int32_t pos_dtype;            // ERWIN_FLOAT32 or ERWIN_FLOAT64
  float eps;                    // added to the variance in the normalisation
  int64_t nodes;
  int64_t edges;
  int64_t channels;             // without padding; 1 .. 2^24
  int64_t dim;                  // 1 .. 2^24
  const int64_t* source;        // [edges]: the node that an edge leaves
  const int64_t* target;        // [edges]: the node that it enters
  const int64_t* target_ptr;    // [nodes + 1], by erwin_group with key `target`
  const int64_t* target_order;  // [edges]
  const int64_t* source_ptr;    // [nodes + 1], by erwin_group with key `source`; read by the backward call
  const int64_t* source_order;  // [edges]
  const float* source_rows;     // [nodes, padded channels]
  const float* target_rows;     // [nodes, padded channels]
  const void* pos;              // [nodes, dim] in pos_dtype
  const float* weight;          // [dim, padded channels]
  const float* norm_weight;     // [padded channels]
  const float* norm_bias;       // [padded channels]
} erwin_message;

// An edge whose end is not a node, or a table that is not the result of erwin_group, is an invalid argument.
//
// `mean` [nodes, padded channels]: zero for a node without edges; padding is unspecified, as in all outputs.
ERWIN_API int32_t erwin_message_forward(const erwin_context* context, const erwin_message* message, float* mean);

// The size of the workspace of a backward call. Reads no array.
ERWIN_API int32_t erwin_message_workspace(const erwin_message* message, int64_t* bytes);

// Gradients of `source_rows`, `target_rows`, and, one after the other, of `weight`, `norm_weight`, `norm_bias`:
// `grad_weights` [dim + 2, padded channels]. `grad_mean` is padded with zeros.
ERWIN_API int32_t erwin_message_backward(const erwin_context* context, const erwin_message* message,
                                         const float* grad_mean, void* workspace, int64_t workspace_bytes,
                                         float* grad_source, float* grad_target, float* grad_weights);

#ifdef __cplusplus
}
#endif
#endif  // ERWIN_H_
