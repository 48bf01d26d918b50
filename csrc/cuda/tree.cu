#include "tree_build.h"

namespace erwin {

int32_t cuda_tree_workspace(const erwin_context& context, const Layout& layout, int32_t dtype, int64_t dim,
                            const erwin_tree_bounds& bounds, bool rotated, int64_t* bytes) {
  return cuda::tree_workspace(context, layout, dtype, dim, bounds, rotated, bytes);
}

int32_t cuda_tree_build(const erwin_context& context, const Layout& layout, int32_t dtype, int64_t dim,
                        const erwin_tree_bounds& bounds, const DeviceTree& tree) {
  return cuda::tree_build(context, layout, dtype, dim, bounds, tree);
}

}  // namespace erwin
