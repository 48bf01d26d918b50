// What went wrong on a device.
#ifndef ERWIN_ERROR_H_
#define ERWIN_ERROR_H_

namespace erwin {

// Keeps a text, which must live as long as the library, for erwin_last_error.
void set_last_error(const char* text);

}  // namespace erwin

#endif  // ERWIN_ERROR_H_
