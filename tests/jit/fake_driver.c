/* Stands in for the driver where there is none, and counts who would initialise it. */
int fulmen_fake_driver_calls = 0;
int cuInit(unsigned flags) {
  (void)flags;
  ++fulmen_fake_driver_calls;
  return 100; /* CUDA_ERROR_NO_DEVICE */
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuGetExportTable(const void** table, const void* id) {
  (void)id;
  *table = 0;
  ++fulmen_fake_driver_calls;
  return 100;
}
