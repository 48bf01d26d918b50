// Stores the message of the last error on a device.
#ifndef ERWIN_ERROR_H_
#define ERWIN_ERROR_H_

namespace erwin {

// Stores the pointer to a text for erwin_last_error. The text must exist as long as the library is loaded.
void set_last_error(const char* text);

}  // namespace erwin

#endif  // ERWIN_ERROR_H_
